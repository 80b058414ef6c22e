"""What `make scan` makes of what the scanners print, and that no finding passes without a reason."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tools.scan import __main__ as scan

LYNIS = """lynis_version=3.1.4
hardening_index=88
warning[]=NETW-2705|Couldn't find 2 responsive nameservers|-|-|
suggestion[]=BOOT-5264|Consider hardening system services|Run 'systemd-analyze security SERVICE'|-|
suggestion[]=KRNL-6000|One or more sysctl values differ|-|Change sysctl value|
details[]=KRNL-6000|sysctl|desc:rp_filter;field:net.ipv4.conf.all.rp_filter;prefval:1;value:2;|
details[]=KRNL-6000|sysctl|desc:forwarding;field:net.ipv4.conf.all.forwarding;prefval:0;value:1;|
suggestion[]=SSH-7408|Consider hardening SSH configuration|AllowTcpForwarding (set LOCAL to NO)|-|
details[]=SSH-7408|sshd|desc:sshd option AllowTcpForwarding;field:AllowTcpForwarding;prefval:NO;value:LOCAL;|
suggestion[]=SSH-7408|Consider hardening SSH configuration|Port (set 22 to )|-|
details[]=SSH-7408|sshd|desc:sshd option Port;field:Port;prefval:;value:22;|
"""


def test_one_suggestion_about_many_settings_is_a_finding_for_each() -> None:
    assert [(one.test, one.about) for one in scan.lynis(LYNIS)] == [
        ("NETW-2705", ""),
        ("BOOT-5264", "Run 'systemd-analyze security SERVICE'"),
        ("KRNL-6000", "net.ipv4.conf.all.rp_filter"),
        ("KRNL-6000", "net.ipv4.conf.all.forwarding"),
        ("SSH-7408", "AllowTcpForwarding"),
        ("SSH-7408", "Port"),
    ]
    assert scan.lynis_facts(LYNIS)["hardening_index"] == "88"


def test_a_rule_of_openscap_that_is_not_kept_is_a_finding_and_counts() -> None:
    told = (
        "ssg-debian12 anssi_bp28_enhanced\nsudo_add_noexec|fail|Sudo &quot;NOEXEC&quot;\n"
        "package_audit_installed|pass|Audit\nsysctl_x|pass|X\npartition_for_opt|notapplicable|/opt\n"
    )
    assert scan.openscap(told) == (
        [scan.Finding("openscap", "fail", "sudo_add_noexec", 'Sudo "NOEXEC"')],
        66,
        "ssg-debian12 anssi_bp28_enhanced",
    )


def test_ssh_audit_s_warnings_name_their_algorithm() -> None:
    text = "(kex) diffie-hellman-group14-sha256 -- [warn] 2048-bit modulus\n(mac) umac-128-etm -- [info] since 6.2\n"
    assert scan.ssh_audit(text) == [
        scan.Finding("ssh-audit", "warn", "diffie-hellman-group14-sha256", "2048-bit modulus")
    ]


def test_what_a_name_speaks_and_should_not_is_a_finding() -> None:
    told = (
        '\n    Checking results against Mozilla\'s "intermediate" configuration.\n\n'
        "    127.0.0.1:8443: FAILED - Not compliant.\n        * tls_curves: TLS curves {'X448'} are supported.\n"
    )
    assert scan.sslyze("api.example.com", told) == [
        scan.Finding(
            "sslyze", "tls_curves", "api.example.com", "TLS curves {'X448'} are supported."
        )
    ]
    assert scan.sslyze("api.example.com", "  127.0.0.1:8443: OK - Compliant.\n") == []


def test_a_port_that_answers_in_one_family_alone_is_a_finding() -> None:
    """A rule that was written for IPv4 leaves IPv6 open; a port that should answer and does not is one as well."""
    wanted = {"tcp": {22, 443}, "udp": set[int]()}
    answered = {"tcp 4": [22, 443], "tcp 6": [22, 443, 3000], "udp 4": [], "udp 6": [5353]}
    assert [one.key for one in scan.unexpected(answered, wanted)] == [
        "ports tcp 6 3000",
        "ports udp 6 5353",
    ]
    (silent,) = scan.unexpected({"tcp 4": [22]}, wanted)
    assert (silent.key, silent.text) == ("ports tcp 4 443", "does not answer")


def test_a_waiver_for_one_setting_excuses_no_other() -> None:
    waivers = [{"tool": "lynis", "test": "KRNL-6000", "about": ["net.x"], "why": "two\ncards"}]
    one = scan.Finding("lynis", "KRNL-6000", "net.x", "")
    assert scan.waived(one, waivers).why == "two cards"
    assert scan.waived(scan.Finding("lynis", "KRNL-6000", "net.xy", ""), waivers).why == ""
    many = [{"tool": "openscap", "test": "fail", "about": ["partition_for_*"], "why": "one disk"}]
    assert scan.waived(scan.Finding("openscap", "fail", "partition_for_var", ""), many).why
    assert not scan.waived(scan.Finding("openscap", "fail", "no_partition_for_x", ""), many).why


def test_every_waiver_has_a_reason_and_stands_once() -> None:
    waivers = yaml.safe_load((Path(scan.__file__).parent / "waivers.yaml").read_text())["waivers"]
    assert [one for one in waivers if len(one["why"].split()) < 4] == []
    named = [
        (one["tool"], one["test"], about) for one in waivers for about in one.get("about", [""])
    ]
    assert len(named) == len(set(named))


def result(*findings: scan.Finding, index: int = 91, kept: int = 91) -> dict[str, Any]:
    """What main() keeps."""
    rows = [{**scan.asdict(one), "key": one.key} for one in findings]
    about = {"env": "local", "when": "2026-11-27 04:00 UTC", "index": index, "least": 90}
    about |= {"kept": kept, "kept_least": 90, "openscap": "debian12 strict"}
    return {**about, "lynis": "3.1.4", "ports": "all", "findings": rows}


@pytest.mark.parametrize(
    ("index", "kept", "why", "code"),
    [(91, 91, "a reason", 0), (91, 91, "", 1), (89, 91, "a reason", 1), (91, 89, "a reason", 1)],
)
def test_it_is_red_for_an_unexplained_finding_and_for_a_low_figure(
    index: int, kept: int, why: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    now = result(scan.Finding("lynis", "A-1", "x", "what is wrong", why), index=index, kept=kept)
    assert scan.summary(now, {}, Path("page.html")) == code
    assert ("✗" in capsys.readouterr().out) == bool(code)


def test_the_reports_tell_what_changed_and_what_failed() -> None:
    old, new = scan.Finding("lynis", "A-1", "", "old"), scan.Finding("lynis", "B-2", "<b>", "new")
    page = scan.page(result(new), result(old, index=80))
    assert "new: lynis B-2 &lt;b&gt;" in page
    assert "gone: lynis A-1" in page
    assert "80 → 91" in page
    (suite,) = ElementTree.fromstring(scan.junit(result(new))).iter("testsuite")  # noqa: S314 - ours
    assert suite.attrib["failures"] == "1"


def test_a_port_that_somebody_listens_on_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in asyncio.run(scan.answering("127.0.0.1", [port], silence=5))
