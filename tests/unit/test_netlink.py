"""Generic netlink, against the family that every kernel has: the one that knows the others."""

from __future__ import annotations

import sys

import pytest

from moorage.gateway.mount import kernel_nbd, netlink


def test_attributes_are_read_as_they_are_written() -> None:
    nested = netlink.attribute(7, netlink.u32(1, 5) + netlink.text(2, "a name"))
    data = netlink.u64(2, 1 << 40) + nested + netlink.attribute(3, b"odd")
    assert len(data) % 4 == 0
    read = dict(netlink.attributes(data))
    assert netlink.Message(0, read).number(2) == 1 << 40
    assert dict(netlink.attributes(read[7])) == {1: (5).to_bytes(4, sys.byteorder), 2: b"a name\0"}
    assert read[3] == b"odd"


def test_what_is_cut_off_ends_the_attributes() -> None:
    data = netlink.text(1, "whole") + netlink.text(2, "to be cut off")
    for length in range(len(data)):
        assert all(kind in (1, 2) for kind, _ in netlink.attributes(data[:length]))
    assert list(netlink.attributes(bytes(64))) == []  # a length that cannot be


def test_a_family_of_this_kernel() -> None:
    with netlink.Family("nlctrl", version=2) as control:
        control.join("notify")
        assert control.wait(0) == []
        (answer,) = control.call(3, netlink.text(2, "nlctrl"))
        assert answer.number(1) == 16
        assert answer.attributes[2] == b"nlctrl\0"
        with pytest.raises(FileNotFoundError):
            control.call(3, netlink.text(2, "no such family"))


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        netlink.Family("no such family")


def test_nobody_has_a_device_with_an_unknown_mark() -> None:
    assert kernel_nbd.marked("/nowhere/0123456789ab") == []
