"""What somebody changed on the droplet by hand: the audit names it, and one provision sets right what is declared.

A part of `make faults`, on the running local droplet, which it leaves as it found it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.droplet import make, on_droplet

# What to do as root, and what `make audit` must say of it.
CHANGED = [
    ("sysctl -qw net.ipv4.conf.all.accept_redirects=1", "net.ipv4.conf.all.accept_redirects"),
    ("sysctl -qw kernel.kptr_restrict=0", "kernel.kptr_restrict"),
    ("echo kernel.sysrq=1 >>/etc/sysctl.d/99-zz-cimt.conf", "/etc/sysctl.d/99-zz-cimt.conf"),
    ("nft add rule inet cimt input tcp dport 8888 accept", "8888"),
    ("echo '# wider' >>/etc/cimt/firewall.nft", "/etc/cimt/firewall.nft"),
    (
        (
            "sed -i 's/^PasswordAuthentication no/PasswordAuthentication yes/' /etc/ssh/sshd_config.d/00-cimt.conf && "
            "systemctl reload ssh"
        ),
        "passwordauthentication",
    ),
    ("rm -f /etc/modprobe.d/cimt-hardening.conf", "/etc/modprobe.d/cimt-hardening.conf"),
    ("auditctl -D >/dev/null", "test_what_people_do_is_noted"),
    ("echo '-a never,task' >/etc/audit/rules.d/cimt.rules", "/etc/audit/rules.d/cimt.rules"),
    ("systemctl disable --quiet --now cimt-integrity.timer", "cimt-integrity.timer"),
    ("systemctl mask --quiet --now systemd-timesyncd", "systemd-timesyncd.service"),
    ("systemctl disable --quiet --now cimt-backup.timer", "cimt-backup.timer"),
    ("swapoff -a", "test_swap_takes_the_rare_peak"),
    ("ln -sf /usr/share/zoneinfo/America/Sao_Paulo /etc/localtime", "/etc/localtime"),
    ("chmod 0666 /etc/docker/daemon.json", "/etc/docker/daemon.json"),
    ("apt-mark unhold containerd >/dev/null", "containerd"),
    (
        "echo 'Storage=none' >>/etc/systemd/journald.conf.d/90-cimt.conf",
        "/etc/systemd/journald.conf.d/90-cimt.conf",
    ),
    (
        "echo 'Unattended-Upgrade \"0\";' >>/etc/apt/apt.conf.d/zz-cimt",
        "/etc/apt/apt.conf.d/zz-cimt",
    ),
    ("echo Welcome >/etc/issue.net", "/etc/issue.net"),
    ("chmod 0666 /etc/cimt/door.json", "/etc/cimt/door.json"),
    ("sed -i 's/^minlen.*/minlen = 4/' /etc/security/pwquality.conf", "minlen"),
    ("rm -f /etc/sudoers.d/cimt-door", "/etc/sudoers.d/cimt-door"),
    (
        "sed -i 's/^OnCalendar=.*/OnCalendar=yearly/' /etc/systemd/system/cimt-backup.timer",
        "yearly",
    ),
]
# What nobody declares, so that nothing takes it away: what to do, what the audit says, and the way back.
ADDED = [
    (
        (
            "useradd --create-home stranger && install -d -m 0700 -o stranger ~stranger/.ssh && "
            "cat ~cimt/.ssh/authorized_keys >~stranger/.ssh/authorized_keys"
        ),
        "deluser --remove-home stranger",
        "userdel --remove stranger",
    ),
    (
        "useradd --non-unique --uid 0 twin",
        "twin, by number 0",
        "sed -i /^twin:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow",
    ),
    (
        "usermod --append --groups docker www-data",
        "www-data, by group docker",
        "gpasswd --delete www-data docker",
    ),
    (
        "echo 'nobody ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/hand && chmod 0440 /etc/sudoers.d/hand",
        "nobody, by sudo",
        "rm /etc/sudoers.d/hand",
    ),
    (
        "printf 'Match User stranger\\n  PasswordAuthentication yes\\n' >/etc/ssh/sshd_config.d/99-hand.conf",
        "99-hand.conf",
        "rm /etc/ssh/sshd_config.d/99-hand.conf",
    ),
    (
        (
            "mkdir -p /etc/systemd/system/cimt-integrity.timer.d && "
            "printf '[Timer]\\nOnCalendar=yearly\\n' >/etc/systemd/system/cimt-integrity.timer.d/hand.conf && "
            "systemctl daemon-reload"
        ),
        "cimt-integrity.timer.d/hand.conf",
        "rm -r /etc/systemd/system/cimt-integrity.timer.d && systemctl daemon-reload",
    ),
]


@pytest.fixture
def added() -> Iterator[None]:
    """Everything that nobody declared, and its way back."""
    on_droplet("\n".join(do for do, _, _ in ADDED))
    yield
    on_droplet("\n".join(back for _, _, back in ADDED))


def test_the_audit_names_what_was_changed_and_one_provision_sets_it_right() -> None:
    on_droplet("\n".join(do for do, _ in CHANGED))
    audit = make("audit")
    assert audit.returncode != 0
    assert [words for _, words in CHANGED if words not in audit.stdout] == []
    provision = make("provision")
    assert provision.returncode == 0, provision.stdout[-3000:]
    audit = make("audit")
    assert audit.returncode == 0, audit.stdout[-3000:]
    assert "changed=0" in make("provision").stdout


@pytest.mark.usefixtures("added")
def test_the_audit_names_what_nobody_declared() -> None:
    audit = make("audit")
    assert audit.returncode != 0
    assert [words for _, words, _ in ADDED if words not in audit.stdout] == []
