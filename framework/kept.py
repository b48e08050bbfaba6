"""The spec where it outlives the scheduler's host: in a label of the framework at the master. Pure.

The master tells it to every agent that runs a task of the framework, and those have it on disk: so it is
there as long as the framework is, whichever hosts lose their power. It holds paths, and no secret.
"""

from __future__ import annotations

import json

from moorage.framework.inventory import Json, pairs_of
from moorage.framework.spec import Spec, document_of, parse
from moorage.wire.errors import Invalid

LABEL = "moorage_spec"
CAPABILITIES = ("MULTI_ROLE", "RESERVATION_REFINEMENT", "PARTITION_AWARE", "TASK_KILLING_STATE")


def framework_info(spec: Spec) -> Json:
    document = json.dumps(document_of(spec), sort_keys=True, separators=(",", ":"))
    return {
        "user": spec.user,
        "name": spec.name,
        "principal": spec.principal,
        "roles": [spec.role],
        "failover_timeout": spec.failover_timeout_s,
        "checkpoint": True,
        "capabilities": [{"type": each} for each in CAPABILITIES],
        "labels": {"labels": [{"key": LABEL, "value": document}]},
    }


def kept_in(info: Json) -> Spec | None:
    """The spec in a FrameworkInfo; None of a framework that was run by a release that kept none. Raises
    Invalid for one that cannot be read, or is not of this framework: whoever may call a framework by our
    name does not say by that what we run."""
    text = pairs_of(info.get("labels", {})).get(LABEL)
    if text is None:
        return None
    try:
        spec = parse(json.loads(text))
    except (ValueError, RecursionError):
        raise Invalid("it is no JSON") from None
    says = (spec.name, [spec.role], spec.principal)
    if says != (info["name"], info.get("roles", []), info.get("principal", "")):
        raise Invalid(f"it is of a framework {spec.name} with role {spec.role}, principal {spec.principal}")
    return spec
