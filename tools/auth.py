"""`make auth`: signing in, as supabase/config.toml declares it, in the Supabase project of SUPABASE_URL.

Usage: [CONFIRM=yes] python -m tools.auth [--with-token] [--profile FILE]

Shows by the locked Supabase CLI what differs; with CONFIRM=yes it is made so. The values come from the settings; a
secret is never compared, because Supabase does not give it back: a new SMTP_PASSWORD takes effect with CONFIRM=yes,
and is wanted only then.
Exit codes: 0 nothing differs, or it was made so; 2 something differs; 1 refused, or Supabase failed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping

import yaml

from plugins.filter.settings import of_verb
from tools.database.address import ROOT, Refused, hide_secrets, told
from tools.database.migrate import run_cli
from tools.step import note

UNASKED = ("--agent", "no")
DIFFERS = 2  # of `supabase config diff --exit-code`
DIFFERENCE = re.compile(
    r"(auth\.[\w.]+) \[([\w-]+)\]\n?"
)  # a name that it lists, and how it differs


def project(url: str) -> str:
    """The project that an address of Supabase names. Raises Refused for another one."""
    found = re.fullmatch(r"https://([a-z0-9]{20})\.supabase\.co/?", url)
    if not found:
        raise Refused(
            f"SUPABASE_URL={url!r} names no project. Next: the address as in Supabase → Settings → Data API, "
            "https://….supabase.co, not a domain of yours"
        )
    return found[1]


def variables(given: Mapping[str, str], verb: str) -> dict[str, str]:
    """What config.toml takes by `env(…)`. Raises Refused, naming what ``verb`` misses and why it has to be there."""
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
    missing = [name for name in of_verb(declared, verb, "needed_by") if not given.get(name)]
    if missing:
        mail = (
            " Supabase's own mail sends two an hour, to members of your organisation alone: "
            "with it, nobody else can sign in."
            if any(name.startswith("SMTP_") for name in missing)
            else ""
        )
        raise Refused(
            f"not set: {', '.join(missing)}.{mail} Next: docs/setup.md says where each comes from"
        )
    invited = given.get("SIGN_UP", "") == "invited"
    made = {
        "SITE_URL": f"https://{given['WEB_DOMAIN']}",
        "ALLOW_SIGN_UP": "false" if invited else "true",
    }
    taken = {name: given[name] for name in given if name.startswith("SMTP_") and given[name]}
    return {"SMTP_PASSWORD": "not compared"} | made | taken


def main(argv: list[str] | None = None) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="", help="another management API than Supabase's own")
    parser.add_argument(
        "--with-token", action="store_true", help="without one: say so, and end well"
    )
    options = parser.parse_args(argv)
    profile, confirmed = options.profile, os.environ.get("CONFIRM") == "yes"
    if options.with_token and not os.environ.get("SUPABASE_ACCESS_TOKEN"):
        told_so = "SUPABASE_ACCESS_TOKEN is not set here"
        note(notes=[f"how people sign in was not compared: {told_so}"])
        print(f"auth: not compared: {told_so}; docs/operations/sign-in.md says how it can be")
        return 0
    try:
        if os.environ.get("ENV", "local") == "local":
            raise Refused(
                "the local sign-in is a stand-in, which has nothing to set. Next: make auth ENV=production"
            )
        taken = variables(os.environ, "auth" if confirmed else "auth-plan")
        environment = {**os.environ, **taken, "SUPABASE_TELEMETRY_DISABLED": "1"}
        target = [f"--remote={project(os.environ['SUPABASE_URL'])}", "--workdir", str(ROOT)]
        target += ["--profile", profile] if profile else []
        if confirmed:
            code = run_cli(["config", "push", "--yes", *target, *UNASKED], environment)
            if code:
                raise Refused("the settings were not changed (see above). Next: the same again")
            return 0
        heard: list[str] = []
        code = run_cli(["config", "diff", "--exit-code", *target, *UNASKED], environment, heard)
        if code == DIFFERS:
            found = filter(None, map(DIFFERENCE.fullmatch, heard))
            note(changed=[f"{one[1]} ({one[2]})" for one in found])
            print("auth: secrets and the text of mails are not compared here.", flush=True)
            here = os.environ["ENV"]
            print(f"auth: nothing was changed. Next: make auth ENV={here} CONFIRM=yes")
        elif code:
            raise Refused("Supabase did not say how it is set (see above). Next: the same again")
        return code
    except Refused as reason:
        print(f"auth: {told(reason)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    hide_secrets("stdout", "stderr")
    sys.exit(main())
