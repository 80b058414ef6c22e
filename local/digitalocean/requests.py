"""What each call takes: its scope, its query and its body, as DigitalOcean publishes it. Anything else is refused.

Source: github.com/digitalocean/openapi, 7 August 2026. Fields that no caller here needs (a VPC, load balancers) are
left out, and so refused too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Body(BaseModel):
    """No field that is not named, no number for a text."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, StringConstraints(min_length=1)]
Tag = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_\-:]+$", max_length=255)]
Ports = Annotated[str, StringConstraints(pattern=r"^(?:all|\d{1,5}(?:-\d{1,5})?)$")]
Urn = Annotated[str, StringConstraints(pattern=r"^do:(?:droplet|floatingip|volume):.+")]
Gigabytes = Annotated[int, Field(ge=1, le=16384)]


class Key(Body):
    """An SSH key."""

    name: Text
    public_key: Annotated[str, StringConstraints(pattern=r"^ssh-\S+ AAAA\S+(?: .*)?$")]


class NewTag(Body):
    """A tag."""

    name: Tag


class Policy(Body):
    """When backups are made."""

    plan: Literal["daily", "weekly"]
    weekday: Literal["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"] | None = None
    hour: Literal[0, 4, 8, 12, 16, 20]


class Droplet(Body):
    """A droplet to be made."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]?[a-z0-9A-Z.\-]*[a-z0-9A-Z]$")]
    region: str
    size: str
    image: str | int
    ssh_keys: list[int | str] = []
    backups: bool = False
    backup_policy: Policy | None = None
    ipv6: bool = False
    monitoring: bool = False
    tags: list[Tag] = []
    user_data: Annotated[str, StringConstraints(max_length=65536)] = ""
    volumes: list[str] = []


class DropletAction(Body):
    """Something that is done to a droplet."""

    type: Literal[
        "enable_backups",
        "disable_backups",
        "shutdown",
        "power_off",
        "power_on",
        "resize",
        "enable_ipv6",
    ]
    backup_policy: Policy | None = None
    size: str | None = None
    disk: bool | None = None


class Volume(Body):
    """A volume to be made."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
    size_gigabytes: Gigabytes
    region: str
    tags: list[Tag] = []
    filesystem_type: Literal["ext4", "xfs"] | None = None


class VolumeAction(Body):
    """Attach, detach or grow."""

    type: Literal["attach", "detach", "resize"]
    droplet_id: int | None = None
    size_gigabytes: Gigabytes | None = None
    region: str | None = None


class Ends(Body):
    """Where from, or where to."""

    addresses: list[Text] = []
    tags: list[Tag] = []
    droplet_ids: list[int] = []


class Inbound(Body):
    """What may come in."""

    protocol: Literal["tcp", "udp", "icmp"]
    ports: Ports
    sources: Ends


class Outbound(Body):
    """What may go out."""

    protocol: Literal["tcp", "udp", "icmp"]
    ports: Ports
    destinations: Ends


class Firewall(Body):
    """A whole firewall: what is not said is gone."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9\.-]+$")]
    inbound_rules: list[Inbound] = []
    outbound_rules: list[Outbound] = []
    droplet_ids: list[int] = []
    tags: list[Tag] = []


class OnDroplet(Body):
    """A reserved IP for a droplet."""

    droplet_id: int


class AddressAction(Body):
    """Where a reserved IP leads."""

    type: Literal["assign", "unassign"]
    droplet_id: int | None = None


class Project(Body):
    """A project."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=175)]
    purpose: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    environment: Literal["Development", "Staging", "Production"] | None = None
    description: str = ""


class Resources(Body):
    """What comes into a project."""

    resources: list[Urn]


class Slack(Body):
    """A channel."""

    channel: str
    url: str


class Receivers(Body):
    """Who gets an alert."""

    email: list[str]
    slack: list[Slack]


class Alert(Body):
    """An alert, whole."""

    type: Literal[
        "v1/insights/droplet/cpu",
        "v1/insights/droplet/memory_utilization_percent",
        "v1/insights/droplet/disk_utilization_percent",
    ]
    description: str
    compare: Literal["GreaterThan", "LessThan"]
    value: float | int
    window: Literal["5m", "10m", "30m", "1h"]
    entities: list[str]
    tags: list[Tag]
    alerts: Receivers
    enabled: bool


PAGES = {"per_page", "page"}
D, V, R, W = r"droplets/(\d+)", r"volumes/([\w-]+)", r"reserved_ips/([\d.]+)", r"firewalls/([\w-]+)"
P, A = r"projects/([\w-]+)", r"monitoring/alerts/([\w-]+)"
# "METHOD path" (below /v2/) to: name of the method that answers, scope, queries, body.
CALLS: dict[str, tuple[str, str, set[str], type[Body] | None]] = {
    "GET account": ("account", "account:read", set(), None),
    "GET account/keys": ("keys", "ssh_key:read", PAGES, None),
    "POST account/keys": ("make_key", "ssh_key:create", set(), Key),
    "GET sizes": ("sizes", "sizes:read", PAGES, None),
    r"GET images/([\w-]+)": ("image", "image:read", set(), None),
    "GET tags": ("tags", "tag:read", PAGES, None),
    "POST tags": ("make_tag", "tag:create", set(), NewTag),
    "GET droplets": ("droplets", "droplet:read", PAGES | {"name", "tag_name"}, None),
    "POST droplets": ("make_droplet", "droplet:create", set(), Droplet),
    f"GET {D}": ("droplet", "droplet:read", set(), None),
    f"DELETE {D}": ("delete_droplet", "droplet:delete", set(), None),
    f"GET {D}/backups/policy": ("policy", "droplet:read", set(), None),
    f"POST {D}/actions": ("act", "droplet:update", set(), DropletAction),
    rf"GET {D}/actions/(\d+)": ("action", "droplet:read", set(), None),
    r"GET actions/(\d+)": ("action", "actions:read", set(), None),
    "GET volumes": ("volumes", "block_storage:read", PAGES | {"name", "region"}, None),
    "POST volumes": ("make_volume", "block_storage:create", set(), Volume),
    f"GET {V}": ("volume", "block_storage:read", set(), None),
    f"DELETE {V}": ("delete_volume", "block_storage:delete", set(), None),
    f"POST {V}/actions": ("act_volume", "block_storage_action:create", PAGES, VolumeAction),
    rf"GET {V}/actions/(\d+)": ("action", "block_storage_action:read", PAGES, None),
    "GET reserved_ips": ("addresses", "reserved_ip:read", PAGES, None),
    "POST reserved_ips": ("make_address", "reserved_ip:create", set(), OnDroplet),
    f"GET {R}": ("address", "reserved_ip:read", set(), None),
    f"DELETE {R}": ("delete_address", "reserved_ip:delete", set(), None),
    f"POST {R}/actions": ("act_address", "reserved_ip:update", set(), AddressAction),
    rf"GET {R}/actions/(\d+)": ("action", "reserved_ip:read", set(), None),
    "GET firewalls": ("firewalls", "firewall:read", PAGES, None),
    "POST firewalls": ("make_firewall", "firewall:create", set(), Firewall),
    f"PUT {W}": ("put_firewall", "firewall:update", set(), Firewall),
    "GET projects": ("projects", "project:read", PAGES, None),
    "POST projects": ("make_project", "project:create", set(), Project),
    f"GET {P}/resources": ("resources", "project:read", PAGES, None),
    f"POST {P}/resources": ("assign", "project:assign_resource", set(), Resources),
    "GET monitoring/alerts": ("alerts", "monitoring:read", PAGES, None),
    "POST monitoring/alerts": ("make_alert", "monitoring:create", set(), Alert),
    f"PUT {A}": ("put_alert", "monitoring:update", set(), Alert),
}
SCOPES = {scope for _, scope, _, _ in CALLS.values()}
