"""Who may do what over HTTP: bearer tokens with roles, compared in constant time."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from fastapi.security import HTTPAuthorizationCredentials

from copilotlab.service.problems import ProblemError

Role = Literal["read", "write", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
"""Each role may do what those before it may."""

SHORTEST = 16  # characters: fewer can be guessed


class Tokens:
    """The tokens that are known, by their hashes. roles: token -> role. Raises ValueError for a short token."""

    def __init__(self, roles: dict[str, Role]) -> None:
        for token in roles:
            if len(token) < SHORTEST:
                raise ValueError(
                    f"a token of {len(token)} characters: expected {SHORTEST} or more, as from "
                    "python -c 'import secrets; print(secrets.token_urlsafe())'"
                )
        self._roles = {sha256(token.encode()).digest(): role for token, role in roles.items()}

    @classmethod
    def of(cls, token: str | None, file: Path | None) -> Tokens:
        """Read them. token: one for admin; file: a line for each, "role token". Raises ValueError, OSError."""
        roles: dict[str, Role] = {}
        for number, line in enumerate(file.read_text().splitlines() if file else [], 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or words[0] not in ROLES:
                raise ValueError(f"{file}, line {number}: expected 'read', 'write' or 'admin', a space and a token")
            roles[words[1]] = words[0]  # type: ignore[assignment]  # one of the three, as was just seen
        if token:
            roles[token] = "admin"
        return cls(roles)

    def role_of(self, token: str) -> Role | None:
        """Return the role of a token, None for one that is not known. All are compared, in constant time."""
        given, found = sha256(token.encode(errors="replace")).digest(), None
        for known, role in self._roles.items():
            if hmac.compare_digest(given, known):
                found = role
        return found

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return f"Tokens({len(self)})"


class Guard:
    """Who may do what: what requests are checked by."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def check(self, needed: Role, given: HTTPAuthorizationCredentials | None, *, opened: bool = False) -> None:
        """Raise ProblemError unless who asks may do what needs this role.

        opened: whether it needs no token. Where no token was set, which is so on loopback alone, reading needs none.
        """
        if opened or (not len(self._tokens) and needed == "read"):
            return
        if not len(self._tokens):
            raise ProblemError(403, "this needs a token, and none was set: start with COPILOTLAB_TOKEN or tokens_file")
        role = self._tokens.role_of(given.credentials) if given is not None else None
        if role is None:
            said = "this token is not known" if given is not None else "this needs Authorization: Bearer TOKEN"
            raise ProblemError(401, said, WWW_Authenticate="Bearer")
        if not covers(role, needed):
            raise ProblemError(403, f"this needs a token for {needed!r}, and the token given is for {role!r}")

    def __repr__(self) -> str:
        return f"Guard({self._tokens!r})"


def covers(role: Role, needed: Role) -> bool:
    """Tell whether ``role`` may do what needs ``needed``."""
    return ROLES.index(role) >= ROLES.index(needed)
