"""Checks of the W&B server before it is used: whether it answers, and whether there is a key for it."""

import json
import netrc
import os
import ssl
import urllib.error
import urllib.request

PROBE_SECONDS = 5.0
OWN_PROXY = ("WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY", "WANDB_X_PROXIES")
FIRST_SERVER_FAULT = 500


def server_problem(url: str) -> str | None:
    """Return why the server at `url` cannot be used now, within `PROBE_SECONDS`, or None if it answers at all.

    The W&B client would find out too, but only after ten seconds for the user's name and its `init_timeout`.
    """
    if any(name in os.environ for name in OWN_PROXY):  # only the client can use these proxies
        return None
    body = json.dumps({"query": "{__typename}"}).encode()
    request = urllib.request.Request(f"{url.rstrip('/')}/graphql", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}" if error.code >= FIRST_SERVER_FAULT else None
    except TimeoutError:
        return f"has not answered within {PROBE_SECONDS:g} s"
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # the client has its own certificates
            return None
        if isinstance(error.reason, TimeoutError):
            return f"has not answered within {PROBE_SECONDS:g} s"
        return f"cannot be reached ({error.reason})"
    except OSError as error:
        return f"cannot be reached ({error})"


def has_key(url: str) -> bool:
    """Return whether the W&B client would find an API key for the server without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(url.split("//")[-1].split("/")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False
