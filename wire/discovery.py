"""Where a service is said to be: a list of addresses, or an SRV name (``srv:_registry._tcp.moorage.mesos``).

Owns nothing, believes nothing: what it finds is hearsay that whoever connects has to verify (leader.py). The
addresses of an SRV name's targets are asked of DNS here too. The system's resolver would hold a thread for as
long as a DNS server does not answer, and there are few: with asyncio's own loop those of ``to_thread``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from moorage.wire import address as addresses
from moorage.wire.errors import Invalid, Unavailable

LIFETIME_S = 5.0  # of the question for a name
HOST_LIFETIME_S = 2.0  # of one for a target: with both the answer comes within a call's usual 10 s
CANDIDATES_MAX = 64

Hosts = dict[dns.name.Name, list[str]]  # the addresses of a target


def is_name(spec: str) -> bool:
    """Whether DNS says where it is, and so may say something else the next time."""
    return spec.startswith("srv:")


async def resolve(spec: str, *, resolver: dns.asyncresolver.Resolver | None = None) -> list[str]:
    """``h1:p,h2:p`` or ``srv:_registry._tcp.moorage.mesos`` to addresses; raises Invalid or Unavailable."""
    if is_name(spec):
        return await _resolve_srv(spec[len("srv:") :], resolver)
    found = [str(addresses.parse(part.strip())) for part in spec.split(",") if part.strip()]
    if not found:
        raise Invalid("no address given: say HOST:PORT,... or srv:NAME")
    return list(dict.fromkeys(found))


async def _resolve_srv(name: str, resolver: dns.asyncresolver.Resolver | None) -> list[str]:
    if not name:
        raise Invalid("no SRV name given: say srv:_registry._tcp.moorage.mesos")
    try:
        return await _look_up(name, resolver or dns.asyncresolver.Resolver())
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        raise Unavailable(
            f"{name} has no SRV record: is the registry running under that name, and is the DNS server "
            "of /etc/resolv.conf the one that knows it? `host:port` of a registry works without DNS"
        ) from None
    except dns.resolver.NoResolverConfiguration:
        raise Unavailable(f"cannot look up {name}: this host has no /etc/resolv.conf") from None
    except dns.exception.Timeout:
        raise Unavailable(
            f"cannot look up {name}: no DNS server of /etc/resolv.conf answered in {LIFETIME_S:g} s"
        ) from None
    except (dns.exception.DNSException, OSError) as exc:
        if isinstance(exc, dns.name.LabelTooLong | dns.name.EmptyLabel | dns.name.NameTooLong):
            raise Invalid(f"bad SRV name {name!r}") from None
        raise Unavailable(f"cannot look up {name}: {exc}") from None


async def _look_up(name: str, resolver: dns.asyncresolver.Resolver) -> list[str]:
    answer = await resolver.resolve(name, "SRV", lifetime=LIFETIME_S)
    records = [record for record in answer if isinstance(record, SRV)]
    records.sort(key=lambda record: (record.priority, -record.weight, str(record.target), record.port))
    records = [record for record in records if str(record.target) != "."][:CANDIDATES_MAX]
    if not records:
        raise Unavailable(f"{name} says that its service is not available")
    targets = dict.fromkeys(record.target for record in records)
    hosts = _beside(answer)
    missing = [target for target in targets if target not in hosts]
    hosts |= zip(missing, await asyncio.gather(*(_host(target, resolver) for target in missing)), strict=True)
    found = [str(addresses.Tcp(host, record.port)) for record in records for host in hosts[record.target]]
    if not found:
        shown = ", ".join(target.to_text(omit_final_dot=True) for target in targets)
        raise Unavailable(f"{name} leads to {shown}, of which no address is known")
    return list(dict.fromkeys(found))[:CANDIDATES_MAX]


def _beside(answer: dns.resolver.Answer) -> Hosts:
    """What the server told of the targets without being asked."""
    hosts: Hosts = {}
    for records in answer.response.additional:
        if found := _addresses(records):
            hosts.setdefault(records.name, []).extend(found)
    return hosts


async def _host(target: dns.name.Name, resolver: dns.asyncresolver.Resolver) -> list[str]:
    """A target that leads nowhere says nothing of the others."""
    for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        try:
            return _addresses(await resolver.resolve(target, kind, lifetime=HOST_LIFETIME_S))
        except dns.resolver.NoAnswer:
            continue
        except dns.exception.DNSException:
            break
    return []


def _addresses(records: Iterable[object]) -> list[str]:
    return [str(record.address) for record in records if isinstance(record, A | AAAA)]
