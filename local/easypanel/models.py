"""Request bodies, as the panel's published OpenAPI document (2.28) describes them.

Shapes only: what 2.33 expects is taken to equal 2.28-2.32. Types are strict, unknown keys are
dropped without a word and an optional field that is left out gets its default (it is *wiped*).
Problems are worded as the panel's validator (zod) words them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from .errors import BadRequest


def _kind(value: Any) -> str:
    """JavaScript's name for the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("expected", f"Expected number, received {_kind(value)}")
    return value


def _matches(pattern: str) -> BeforeValidator:
    compiled = re.compile(pattern)

    def check(value: Any) -> Any:
        if isinstance(value, str) and not compiled.search(value):
            raise PydanticCustomError("invalid", "Invalid")
        return value

    return BeforeValidator(check)


def _email(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value):
        raise PydanticCustomError("invalid", "Invalid email")
    return value


Number = Annotated[int | float, PlainValidator(_number)]
Name = Annotated[str, _matches(r"\A[a-z0-9\-_]+\Z")]
Email = Annotated[str, BeforeValidator(_email)]
Filled = Annotated[str, Field(min_length=1)]
Path = Annotated[str, _matches(r"^/")]
Host = Annotated[str, _matches(r"\A[^\s*]+\Z")]


class Body(BaseModel):
    """A body, or a part of one.

    An optional field is ``Field(default=None)`` without ``None`` in its type: it may be left out,
    but an explicit null is refused.
    """

    model_config = ConfigDict(extra="ignore", strict=True)


class Empty(Body):
    """An operation without input."""


class Id(Body):
    """One object by its id."""

    id: str


# -- set-up, users ---------------------------------------------------------------------------


class Setup(Body):
    """First admin."""

    email: Email
    password: Annotated[str, Field(min_length=8)]
    subscribe: bool
    source: Filled
    terms: bool


class Login(Body):
    """Sign-in; ``code`` is the second factor, which the stand-in does not have."""

    email: Email
    password: str
    rememberMe: bool = False
    code: str = Field(default=None)


class UpdateUser(Id):
    """A user's role and, where it is given, password."""

    admin: bool
    password: str = Field(default=None)


class CustomConfig(Body):
    """What is added to the proxy's configuration, as YAML."""

    config: str = ""


class ProxyEnv(Body):
    """The proxy's environment, a line a variable."""

    env: str = ""


# -- projects, services ----------------------------------------------------------------------


class ProjectName(Body):
    """A project, where the panel calls the field ``name``."""

    name: Name


class Service(Body):
    """A service of a project."""

    projectName: Name
    serviceName: Name


class ServiceFilter(Body):
    """Any service, or those of one project, or one."""

    projectName: Name = Field(default=None)
    serviceName: Name = Field(default=None)


class ImageSource(Body):
    """An image to run, with the registry's credentials."""

    type: Literal["image"]
    image: str
    username: str = Field(default=None)
    password: str = Field(default=None)


class Deploy(Body):
    """How tasks run. There is no health check here: the image's HEALTHCHECK decides."""

    replicas: Number = 1
    command: str | None = None
    zeroDowntime: bool = True
    capAdd: list[str] = Field(default=None)
    capDrop: list[str] = Field(default=None)
    sysctls: dict[str, str] = Field(default=None)
    groups: list[str] = Field(default=None)
    tiniInit: bool = Field(default=None)


class Resources(Body):
    """Memory in MB, CPU in cores; 0 is unlimited."""

    memoryReservation: Number
    memoryLimit: Number
    cpuReservation: Number
    cpuLimit: Number


class VolumeMount(Body):
    """A directory of the service under /etc/easypanel/projects."""

    type: Literal["volume"]
    name: Name
    mountPath: Filled


class BindMount(Body):
    """A path of the host."""

    type: Literal["bind"]
    hostPath: Filled
    mountPath: Filled


class FileMount(Body):
    """A file with this content."""

    type: Literal["file"]
    content: str
    mountPath: Filled


Mount = Annotated[VolumeMount | BindMount | FileMount, Field(discriminator="type")]


class Port(Body):
    """A published port of the host."""

    published: Number
    target: Number
    protocol: Literal["tcp", "udp"] = "tcp"


class CreateApp(Service):
    """A new app. Only the image source is supported; builds are not part of the stand-in."""

    source: ImageSource = Field(default=None)
    env: str = ""
    deploy: Deploy = Field(default_factory=Deploy)
    mounts: list[Mount] = []
    ports: list[Port] = []
    resources: Resources = Field(default=None)


class UpdateSourceImage(Service):
    """Image and its credentials, replaced as a whole."""

    image: Filled
    username: str = Field(default=None)
    password: str = Field(default=None)


class UpdateEnv(Service):
    """The whole environment, one KEY=value per line."""

    env: str = ""
    createDotEnv: bool = Field(default=None)


class UpdateDeploy(Service):
    """Deploy options, nested: flat fields are dropped like any unknown key."""

    deploy: Deploy = Field(default_factory=Deploy)


class UpdateResources(Service):
    """Limits and reservations; left out means none."""

    resources: Resources = Field(default=None)


class DeployService(Service):
    """Deploy now."""

    forceRebuild: bool = False


class CreateMount(Service):
    """A mount to add at the end."""

    values: Mount


class Indexed(Service):
    """The mount or port at a position, counted from 0."""

    index: Number


class UpdateMount(Indexed):
    """The new mount at a position."""

    values: Mount


class CreatePort(Service):
    """A port to publish, at the end."""

    values: Port


class UpdatePort(Indexed):
    """The new port at a position."""

    values: Port


# -- domains ---------------------------------------------------------------------------------


class ServiceDestination(Body):
    """A service of the panel behind a domain."""

    protocol: Literal["http", "https"]
    port: Annotated[Number, Field(ge=1)]
    path: Path = "/"
    projectName: Name
    serviceName: Name
    composeService: str = Field(default=None)


class Server(Body):
    """A server outside the panel behind a domain."""

    url: Filled
    weight: Number = Field(default=None)


class CustomDestination(Body):
    """Servers outside the panel behind a domain."""

    servers: list[Server]


class Domain(Body):
    """A domain. The whole object is required, on create and on update alike."""

    id: str
    host: Host
    https: bool
    path: Path
    middlewares: list[str]
    certificateResolver: str
    wildcard: bool
    destinationType: Literal["service", "custom"]
    serviceDestination: ServiceDestination = Field(default=None)
    customDestination: CustomDestination = Field(default=None)


class ListActions(Body):
    """Latest actions, newest first."""

    projectName: Name = Field(default=None)
    serviceName: Name = Field(default=None)
    type: str = Field(default=None)
    limit: Number = 8


_UNIONS = ("values", "source", "mounts")


def _message(error: Any) -> str:
    """zod's words for one pydantic error."""
    kind, context = error["type"], error.get("ctx", {})
    received = _kind(error.get("input"))
    if kind == "missing":
        return "Required"
    if kind == "string_too_short":
        return f"String must contain at least {context['min_length']} character(s)"
    if kind == "greater_than_equal":
        return f"Number must be greater than or equal to {context['ge']}"
    if kind == "literal_error":
        options = str(context["expected"]).replace(" or ", " | ")
        return f"Invalid enum value. Expected {options}, received '{error.get('input')}'"
    expected = {
        "string_type": "string",
        "bool_type": "boolean",
        "list_type": "array",
        "dict_type": "object",
        "model_type": "object",
    }.get(kind)
    return f"Expected {expected}, received {received}" if expected else str(error["msg"])


Model = TypeVar("Model", bound=Body)


def parse(model: type[Model], data: Any) -> Model:
    """``data`` as a ``model``; raises BadRequest with the first problem of every field."""
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        fields: dict[str, str] = {}
        for error in failure.errors():
            where = error["loc"]
            if where and where[0] in _UNIONS:
                # zod does not say which member of a union was meant, unless nothing was given.
                message = (
                    "Required"
                    if error["type"] == "missing" and len(where) == 1
                    else "Invalid input"
                )
                fields.setdefault(str(where[0]), message)
            else:
                fields.setdefault(".".join(str(part) for part in where), _message(error))
        raise BadRequest("Input validation failed", fields) from None
