"""The demo's users, and an authenticator that lets them in with one password."""

from secrets import compare_digest
from typing import Any, NamedTuple

from jupyterhub.auth import Authenticator
from traitlets import Unicode


class Login(NamedTuple):
    name: str
    who: str


ADMIN = "admin"
LOGINS = (
    Login("ada", "owner of Vision Lab, admin of 自然语言处理实验室"),
    Login("boris", "admin of Vision Lab, owner of 自然语言处理实验室"),
    Login("chen", "member of both; at most one GPU in Vision Lab"),
    Login("dora", "viewer of both: sees, cannot start there"),
    Login(ADMIN, "hub admin"),
)


class DemoAuthenticator(Authenticator):
    """Lets the users of the table in with the password that this demo made at its first start."""

    password = Unicode(help="The one password of all demo users.").tag(config=True)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        given = data.get("password", "").encode()
        right = bool(self.password) and compare_digest(given, self.password.encode())
        name = str(data.get("username", ""))
        return name if right and name in {login.name for login in LOGINS} else None
