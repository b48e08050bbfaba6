"""Where a service is: a list of addresses, or an SRV name (``srv:_registry._tcp.moorage.mesos``).

Owns nothing. An SRV name is asked anew at each call: schedulers move services, and their TTLs are short.
"""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from moorage.wire import address as addresses
from moorage.wire.errors import Invalid, Unavailable

LIFETIME_S = 5.0
CANDIDATES_MAX = 64


async def resolve(spec: str, *, resolver: dns.asyncresolver.Resolver | None = None) -> list[str]:
    """``h1:p,h2:p`` or ``srv:_registry._tcp.moorage.mesos`` to addresses; raises Invalid or Unavailable."""
    if spec.startswith("srv:"):
        return await _resolve_srv(spec[len("srv:") :], resolver)
    found = [str(addresses.parse(part.strip())) for part in spec.split(",") if part.strip()]
    if not found:
        raise Invalid("no address given: say HOST:PORT,... or srv:NAME")
    return list(dict.fromkeys(found))


async def _resolve_srv(name: str, resolver: dns.asyncresolver.Resolver | None) -> list[str]:
    if not name:
        raise Invalid("no SRV name given: say srv:_registry._tcp.moorage.mesos")
    try:
        asked = resolver or dns.asyncresolver.Resolver()
        answer = await asked.resolve(name, "SRV", lifetime=LIFETIME_S)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        raise Unavailable(f"{name} has no SRV record: is the service running under that name?") from None
    except dns.resolver.NoResolverConfiguration:
        raise Unavailable(f"cannot look up {name}: this host has no /etc/resolv.conf") from None
    except dns.exception.Timeout:
        raise Unavailable(f"cannot look up {name}: no DNS server answered in {LIFETIME_S:g} s") from None
    except (dns.exception.DNSException, OSError) as exc:
        if isinstance(exc, dns.name.LabelTooLong | dns.name.EmptyLabel | dns.name.NameTooLong):
            raise Invalid(f"bad SRV name {name!r}") from None
        raise Unavailable(f"cannot look up {name}: {exc}") from None
    records = [record for record in answer if isinstance(record, SRV)]
    records.sort(key=lambda record: (record.priority, -record.weight, str(record.target), record.port))
    found = [_address(record) for record in records if str(record.target) != "."]
    if not found:
        raise Unavailable(f"{name} says that its service is not available")
    return list(dict.fromkeys(found))[:CANDIDATES_MAX]


def _address(record: SRV) -> str:
    return str(addresses.Tcp(record.target.to_text(omit_final_dot=True), record.port))
