"""What the panel does: its operations on state, machine and proxy, independent of HTTP."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from . import models
from .engine import App, DeployFailed, Engine
from .errors import BadRequest, Internal, NotFound, Unauthorized, invariant
from .models import Body
from .proxy import Proxy, ProxyRefused
from .store import State, Store

PROJECT_LIMIT = 3  # the free plan
KEPT_ACTIONS = 50
LOG_SIZE = 20_000  # characters of an action's log that are kept, the last ones
SESSION_SECONDS = 30 * 24 * 3600
MB = 2**20
CORE = 10**9


class Operation(NamedTuple):
    """One operation: how it is called, what it takes, and whether it needs a token."""

    method: str
    body: type[Body]
    run: Callable[[Any], Any]
    open: bool = False


class Panel:
    """The panel. Every public method named in ``operations`` takes a validated body."""

    def __init__(self, store: Store, engine: Engine, proxy: Proxy, version: str) -> None:
        self.store = store
        self.engine = engine
        self.proxy = proxy
        self.version = version
        self._live: dict[str, dict[str, Any]] = {}  # actions under way, with their logs
        self._guard = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}  # one deploy of a service at a time
        self._interrupt_left_actions()

    def operations(self) -> dict[str, Operation]:
        """Every operation by its flat name (panel 2.33 and newer)."""
        read, write = "GET", "POST"
        m = models
        return {
            "getSetupStatus": Operation(read, m.Empty, self.setup_status, open=True),
            "setup": Operation(write, m.Setup, self.setup, open=True),
            "login": Operation(write, m.Login, self.login, open=True),
            "listUsers": Operation(read, m.Empty, self.users),
            "generateApiToken": Operation(write, m.Id, self.generate_api_token),
            "updateUser": Operation(write, m.UpdateUser, self.update_user),
            "getUpdateStatus": Operation(read, m.Empty, self.update_status),
            "listProjectsAndServices": Operation(read, m.Empty, self.projects_and_services),
            "createProject": Operation(write, m.ProjectName, self.create_project),
            "createAppService": Operation(write, m.CreateApp, self.create_app),
            "inspectAppService": Operation(read, m.Service, lambda b: self.shown(self.app(b))),
            "updateAppSourceImage": Operation(write, m.UpdateSourceImage, self.update_source),
            "updateAppEnv": Operation(write, m.UpdateEnv, lambda b: self.update(b, env=b.env)),
            "updateAppDeploy": Operation(
                write, m.UpdateDeploy, lambda b: self.update(b, deploy=deploy_options(b.deploy))
            ),
            "updateAppResources": Operation(
                write, m.UpdateResources, lambda b: self.update(b, resources=dumped(b.resources))
            ),
            "refreshAppDeployToken": Operation(
                write, m.Service, lambda b: self.update(b, token=secrets.token_hex(24))
            ),
            "deployAppService": Operation(write, m.DeployService, self.deploy_app),
            "destroyAppService": Operation(write, m.Service, self.destroy_app),
            "createMount": Operation(write, m.CreateMount, lambda b: self.place("mounts", b)),
            "updateMount": Operation(write, m.UpdateMount, lambda b: self.place("mounts", b)),
            "deleteMount": Operation(write, m.Indexed, lambda b: self.place("mounts", b)),
            "createPort": Operation(write, m.CreatePort, lambda b: self.place("ports", b)),
            "updatePort": Operation(write, m.UpdatePort, lambda b: self.place("ports", b)),
            "deletePort": Operation(write, m.Indexed, lambda b: self.place("ports", b)),
            "listDomains": Operation(read, m.ServiceFilter, self.domains),
            "createDomain": Operation(write, m.Domain, self.create_domain),
            "updateDomain": Operation(write, m.Domain, self.update_domain),
            "deleteDomain": Operation(write, m.Id, self.delete_domain),
            "getCustomConfig": Operation(
                read, m.Empty, lambda _: self.store.read()["proxy"]["config"]
            ),
            "setCustomConfig": Operation(
                write, m.CustomConfig, lambda b: self.set_proxy(config=b.config)
            ),
            "getEnv": Operation(read, m.Empty, lambda _: self.store.read()["proxy"]["env"]),
            "setEnv": Operation(write, m.ProxyEnv, lambda b: self.set_proxy(env=b.env)),
            "restart": Operation(write, m.Empty, self.restart_proxy),
            "listActions": Operation(read, m.ListActions, self.actions),
            "getAction": Operation(read, m.Id, self.action),
        }

    # -- set-up, users -------------------------------------------------------------------------

    def setup_status(self, _: Body) -> dict[str, bool]:
        return {"isComplete": bool(self.store.read()["users"])}

    def setup(self, body: models.Setup) -> None:
        if not body.terms:
            raise BadRequest("Input validation failed", {"terms": "The terms must be accepted"})
        with self.store.change() as state:
            if state["users"]:
                raise BadRequest("Setup is already complete.")
            state["users"].append(
                {
                    "id": new_id(),
                    "email": body.email,
                    "admin": True,
                    **kept_password(body.password),
                    "apiToken": None,
                    "createdAt": now(),
                }
            )

    def login(self, body: models.Login) -> dict[str, str]:
        user = next((u for u in self.store.read()["users"] if u["email"] == body.email), None)
        # The same work for an unknown user, so that the answer's time tells nothing.
        salt = bytes.fromhex(user["salt"]) if user else b"0" * 16
        given = hashed(body.password, salt)
        if user is None or not hmac.compare_digest(given, user["password"]):
            raise Unauthorized("Invalid email or password")
        token = secrets.token_hex(32)
        with self.store.change() as state:
            state["sessions"] = [s for s in state["sessions"] if s["expires"] > time.time()]
            session = {
                "token": token,
                "userId": user["id"],
                "expires": time.time() + SESSION_SECONDS,
            }
            state["sessions"].append(session)
        return {"token": token}

    def authenticate(self, header: str | None) -> None:
        """Raise Unauthorized unless the header is a live session or an API token, bare or Bearer."""
        token = (header or "").removeprefix("Bearer ").strip().encode()
        state = self.store.read()
        known = [u["apiToken"] for u in state["users"] if u["apiToken"]]
        known += [s["token"] for s in state["sessions"] if s["expires"] > time.time()]
        if not token or not any(hmac.compare_digest(token, k.encode()) for k in known):
            raise Unauthorized("Unauthorized")

    def users(self, _: Body) -> list[dict[str, Any]]:
        hidden = {"salt", "password"}
        return [{k: v for k, v in u.items() if k not in hidden} for u in self.store.read()["users"]]

    def generate_api_token(self, body: models.Id) -> None:
        with self.store.change() as state:
            user_of(state, body.id)["apiToken"] = secrets.token_hex(32)

    def update_user(self, body: models.UpdateUser) -> None:
        with self.store.change() as state:
            changed = {} if body.password is None else kept_password(body.password)
            user_of(state, body.id).update({"admin": body.admin, **changed})

    def update_status(self, _: Body) -> dict[str, Any]:
        return {"version": self.version, "releaseTag": self.version, "available": False}

    # -- projects ------------------------------------------------------------------------------

    def projects_and_services(self, _: Body) -> dict[str, Any]:
        state = self.store.read()
        return {
            "projects": state["projects"],
            "services": [self.shown(app) for app in state["apps"]],
        }

    def create_project(self, body: models.ProjectName) -> dict[str, Any]:
        with self.store.change() as state:
            if any(project["name"] == body.name for project in state["projects"]):
                raise BadRequest("Project already exists.")
            if len(state["projects"]) >= PROJECT_LIMIT:
                raise BadRequest(f"The plan allows {PROJECT_LIMIT} projects.")
            project = {"name": body.name, "createdAt": now()}
            state["projects"].append(project)
            self.engine.create_project(body.name)
        return project

    # -- apps ----------------------------------------------------------------------------------

    def app(self, key: models.Service, state: State | None = None) -> dict[str, Any]:
        """The app's record; raises as the panel does when there is none."""
        for app in (state or self.store.read())["apps"]:
            if (app["projectName"], app["name"]) == (key.projectName, key.serviceName):
                return dict(app) if state is None else app
        raise BadRequest("Invariant failed")

    def shown(self, app: dict[str, Any]) -> dict[str, Any]:
        """A record as inspect answers it; the panel echoes the environment with CRLF."""
        address = f"http://{self.engine.address()}:3000"
        return {
            **app,
            "env": app["env"].replace("\r\n", "\n").replace("\n", "\r\n"),
            "deploymentUrl": f"{address}/api/deploy/{app['token']}",
        }

    def create_app(self, body: models.CreateApp) -> dict[str, Any]:
        with self.store.change() as state:
            invariant(any(p["name"] == body.projectName for p in state["projects"]))
            if any(
                (a["projectName"], a["name"]) == (body.projectName, body.serviceName)
                for a in state["apps"]
            ):
                raise BadRequest("Service already exists.")
            app = {
                "projectName": body.projectName,
                "name": body.serviceName,
                "type": "app",
                "enabled": True,
                "token": secrets.token_hex(24),
                "source": dumped(body.source),
                "build": None,
                "env": body.env,
                "deploy": deploy_options(body.deploy),
                "mounts": [dumped(mount) for mount in body.mounts],
                "ports": [dumped(port) for port in body.ports],
                "resources": dumped(body.resources),
                "primaryDomainId": None,
                "createdAt": now(),
            }
            state["apps"].append(app)
        if body.source:  # with an inline source the call deploys, and blocks until it is done
            self.deploy_app(
                models.DeployService(projectName=body.projectName, serviceName=body.serviceName)
            )
        return self.shown(app)

    def update(self, body: models.Service, **fields: Any) -> None:
        with self.store.change() as state:
            self.app(body, state).update(fields)

    def update_source(self, body: models.UpdateSourceImage) -> None:
        source = {"type": "image", "image": body.image}
        for name in ("username", "password"):
            if getattr(body, name) is not None:
                source[name] = getattr(body, name)
        self.update(body, source=source)

    def place(self, kind: str, body: models.Service) -> None:
        """Mounts and ports go by their position: with values and no position at the end, without values away."""
        values, index = getattr(body, "values", None), getattr(body, "index", None)
        with self.store.change() as state:
            items: list[Any] = self.app(body, state)[kind]
            if index is None:
                items.append(dumped(values))
                return
            invariant(0 <= index < len(items))
            items[int(index) : int(index) + 1] = [dumped(values)] if values else []

    def destroy_app(self, body: models.Service) -> None:
        """The app is gone, its domains with it; what its volumes hold stays on the disk."""
        with self._lock(body):
            app = self.app(body)
            self.engine.remove(App(app["projectName"], app["name"], ""))
            with self.store.change() as state:
                state["apps"].remove(app)
                state["domains"] = [d for d in state["domains"] if not points_to(d, body)]
        self._apply_to_proxy()

    # -- deploys -------------------------------------------------------------------------------

    def deploy_app(self, body: models.DeployService) -> None:
        self._finish(body, self._begin(body))

    def hook(self, token: str) -> None:
        """Deploy the app that this hook token belongs to, in the background."""
        for app in self.store.read()["apps"]:
            if hmac.compare_digest(app["token"], token):
                key = models.Service(projectName=app["projectName"], serviceName=app["name"])
                action = self._begin(key)
                threading.Thread(
                    target=self._deploy_quietly, args=(key, action), daemon=True
                ).start()
                return
        raise NotFound("Not found")

    def _deploy_quietly(self, key: models.Service, action: str) -> None:
        """A deploy that nobody waits for: its action says how it ended."""
        try:
            self._finish(key, action)
        except Internal as error:
            print(f"panel: {error.message}", flush=True)

    def _lock(self, key: models.Service) -> threading.Lock:
        with self._guard:
            return self._busy.setdefault(f"{key.projectName}_{key.serviceName}", threading.Lock())

    def _begin(self, key: models.Service) -> str:
        invariant(self.app(key)["source"])
        action = {
            "id": new_id(),
            "type": "deployment",
            "status": "pending",
            "projectName": key.projectName,
            "serviceName": key.serviceName,
            "description": f"deployment of {key.serviceName}",
            "meta": {},
            "noKill": True,
            "noLogs": False,
            "isApiAction": True,
            "isSystemAction": False,
            "createdAt": now(),
            "updatedAt": now(),
            "log": "",
        }
        with self.store.change() as state:
            state["actions"] = [*state["actions"][-KEPT_ACTIONS + 1 :], action]
        self._live[str(action["id"])] = action
        return str(action["id"])

    def _finish(self, key: models.Service, action_id: str) -> None:
        """Run a pending deploy; raises Internal with its reason when it fails."""
        action = self._live[action_id]

        def log(line: str) -> None:
            action["log"] = (action["log"] + f"{line}\n")[-LOG_SIZE:]
            action["updatedAt"] = now()

        with self._lock(key):
            action["status"] = "running"
            problem = ""
            try:
                self.engine.deploy(self._runnable(key), log)
                log("### Success")
            except DeployFailed as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it was, the action must end
                problem = f"{type(error).__name__}: {error}"
            if problem:
                log(f"### Error: {problem}")
            action["status"] = "error" if problem else "done"
            try:
                with self.store.change() as state:
                    state["actions"] = [
                        dict(action) if a["id"] == action_id else a for a in state["actions"]
                    ]
                del self._live[action_id]
            except Internal as error:  # a full disk: the action lives on in memory
                log(f"### {error.message}")
        if problem:
            raise Internal(f"deployment failed: {problem}")

    def _runnable(self, key: models.Service) -> App:
        """The app as the engine takes it."""
        record = self.app(key)
        deploy, resources = record["deploy"], record["resources"] or {}
        domains = (d["host"] for d in self.store.read()["domains"] if points_to(d, key))
        magic = {
            "$(PROJECT_NAME)": key.projectName,
            "$(SERVICE_NAME)": key.serviceName,
            "$(PRIMARY_DOMAIN)": next(domains, ""),
        }
        env = record["env"]
        for name, value in magic.items():
            env = env.replace(name, value)
        return App(
            project=key.projectName,
            name=key.serviceName,
            image=record["source"]["image"],
            username=record["source"].get("username"),
            password=record["source"].get("password"),
            env=[line for line in env.splitlines() if "=" in line and not line.startswith("#")],
            replicas=int(deploy["replicas"]),
            command=deploy.get("command"),
            start_first=deploy["zeroDowntime"],
            cap_add=deploy.get("capAdd") or [],
            cap_drop=deploy.get("capDrop") or [],
            sysctls=deploy.get("sysctls") or {},
            groups=deploy.get("groups") or [],
            init=deploy.get("tiniInit"),
            memory_reservation=int(resources.get("memoryReservation", 0) * MB),
            memory_limit=int(resources.get("memoryLimit", 0) * MB),
            cpu_reservation=int(resources.get("cpuReservation", 0) * CORE),
            cpu_limit=int(resources.get("cpuLimit", 0) * CORE),
            mounts=record["mounts"],
            ports=record["ports"],
        )

    def _interrupt_left_actions(self) -> None:
        """Actions that a killed panel left under way will never end by themselves."""
        if any(a["status"] in ("pending", "running") for a in self.store.read()["actions"]):
            with self.store.change() as state:
                for action in state["actions"]:
                    if action["status"] in ("pending", "running"):
                        action["status"] = "error"
                        action["log"] += "### Error: interrupted: the panel was restarted\n"

    def actions(self, body: models.ListActions) -> list[dict[str, Any]]:
        wanted = {
            "projectName": body.projectName,
            "serviceName": body.serviceName,
            "type": body.type,
        }
        found = [
            {k: v for k, v in self._live.get(a["id"], a).items() if k != "log"}
            for a in self.store.read()["actions"]
            if all(value in (None, a[name]) for name, value in wanted.items())
        ]
        return found[::-1][: int(body.limit)]

    def action(self, body: models.Id) -> dict[str, Any]:
        for action in self.store.read()["actions"]:
            if action["id"] == body.id:
                return dict(self._live.get(body.id, action))
        raise BadRequest("Invariant failed")

    # -- domains -------------------------------------------------------------------------------

    def domains(self, body: models.ServiceFilter) -> list[dict[str, Any]]:
        def wanted(domain: dict[str, Any]) -> bool:
            target = domain.get("serviceDestination") or {}
            return body.projectName in (None, target.get("projectName")) and body.serviceName in (
                None,
                target.get("serviceName"),
            )

        return [domain for domain in self.store.read()["domains"] if wanted(domain)]

    def create_domain(self, body: models.Domain) -> dict[str, Any]:
        domain = self._checked(body) | {"id": new_id()}  # the id that was sent is ignored
        with self.store.change() as state:
            state["domains"].append(domain)
        self._apply_to_proxy()
        return domain

    def set_proxy(self, **fields: str) -> None:
        """Its configuration counts at once, its environment when it starts again."""
        with self.store.change() as state:
            state["proxy"].update(fields)
        self._apply_to_proxy()

    def restart_proxy(self, _: Body) -> None:
        with self.store.change() as state:
            state["proxy"]["restarts"] += 1
            state["proxy"]["runs_by"] = state["proxy"]["env"]
        self._apply_to_proxy()

    def update_domain(self, body: models.Domain) -> None:
        domain = self._checked(body)
        with self.store.change() as state:
            invariant(any(d["id"] == body.id for d in state["domains"]))
            state["domains"] = [domain if d["id"] == body.id else d for d in state["domains"]]
        self._apply_to_proxy()

    def delete_domain(self, body: models.Id) -> None:
        with self.store.change() as state:
            invariant(any(d["id"] == body.id for d in state["domains"]))
            state["domains"] = [d for d in state["domains"] if d["id"] != body.id]
        self._apply_to_proxy()

    def _checked(self, body: models.Domain) -> dict[str, Any]:
        field = f"{body.destinationType}Destination"
        if getattr(body, field) is None:
            raise BadRequest("Input validation failed", {field: "Required"})
        return dict(dumped(body))

    def _apply_to_proxy(self) -> None:
        try:
            self.proxy.apply(self.store.read())
        except ProxyRefused as error:
            raise Internal(str(error)) from error


def points_to(domain: dict[str, Any], key: models.Service) -> bool:
    """Whether the domain belongs to the app."""
    target = domain.get("serviceDestination") or {}
    return (target.get("projectName"), target.get("serviceName")) == (
        key.projectName,
        key.serviceName,
    )


def dumped(body: Body | None) -> Any:
    """A body as JSON-able data without the fields that were left out; None stays None."""
    return None if body is None else body.model_dump(exclude_none=True)


def deploy_options(body: models.Deploy) -> dict[str, Any]:
    """Deploy options as the panel keeps them: no command is null, not absent."""
    return {"command": None, **dumped(body)}


def user_of(state: State, number: str) -> dict[str, Any]:
    """A user's record; raises as the panel does when there is none."""
    found: list[dict[str, Any]] = [user for user in state["users"] if user["id"] == number]
    invariant(found)
    return found[0]


def kept_password(password: str) -> dict[str, str]:
    """A password as a user's record keeps it."""
    salt = secrets.token_bytes(16)
    return {"salt": salt.hex(), "password": hashed(password, salt)}


def hashed(password: str, salt: bytes) -> str:
    """scrypt of a password, as hex."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1).hex()


def new_id() -> str:
    """An id in the style of the panel's."""
    return "c" + secrets.token_hex(12)


def now() -> str:
    """The time, as the panel writes it."""
    seconds = time.time()
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        + f".{int(seconds * 1000) % 1000:03d}Z"
    )
