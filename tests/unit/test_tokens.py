"""Tokens for browsers: what they may be bought for, and all that must not be accepted as one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS
from infra.errors import Unavailable
from query.api import secrets_in_urls
from query.api.keys import KeyOperations
from query.bad_question import BadQuestion
from query.keyring import REFRESH_S, ExpiredToken, Keyring
from query.keys import Access, Key, Keys, digest_of
from query.row_scope import RowScope
from query.token_purchase import TokenRequest, make_claims
from query.tokens import LEEWAY_S, MAX_BYTES, Claims, TokenSigner

NOW = 1_795_181_895_182
SECRET, FORMER, ROOT_KEY = "s" * 32, "f" * 32, "the-key-of-the-installation-itself"
MINE = "adk_0a_mine"
KEY = Key(
    "0a", "Acme", digest_of(MINE), "", 0, False, [3, 4], False, 50, 500, NOW, 0, 0, 1, True, [], False
)  # fmt: skip


@dataclass
class StoredKeys:
    """The tables of keys, in memory."""

    keys: list[Key] = field(default_factory=lambda: [KEY])
    id: str = "installation-1"
    reads: int = 0

    def all(self) -> list[Key]:
        self.reads += 1
        return list(self.keys)

    def installation(self) -> str:
        return self.id


@dataclass
class Installation:
    """A keyring with its clock, which a test sets, and what it reads."""

    stored: StoredKeys = field(default_factory=StoredKeys)
    secret: str = SECRET
    former: str = ""
    root: str = ROOT_KEY
    now_ms: int = NOW

    def __post_init__(self) -> None:
        signer = TokenSigner(self.secret, self.former)
        self.keyring = Keyring(
            cast(Keys, self.stored), self.root, signer, lambda: self.now_ms, lambda: self.now_ms / 1000
        )

    def buy(self, key: str = MINE, **request: Any) -> str:
        access = self.access(key)
        assert access is not None
        signer = self.keyring.signer
        claims = make_claims(
            access, TokenRequest(**request), issuer=self.keyring.installation, id_="t1",
            fingerprint=signer.fingerprint(access.digest), now_ms=self.now_ms,
        )  # fmt: skip
        return signer.sign(claims)

    def access(self, text: str) -> Access | None:
        return self.keyring.access(text)

    def change(self, **fields: Any) -> None:
        """Change the stored key, and wait until routers have read it."""
        self.stored.keys = [msgspec.structs.replace(self.stored.keys[0], **fields)]
        self.now_ms += int(REFRESH_S * 1000) + 1


@pytest.fixture
def here() -> Installation:
    return Installation()


def test_a_token_is_narrower_than_its_key_and_limited_with_it(here: Installation) -> None:
    access = here.access(here.buy(advertisers=[3], campaigns=[7, 8], expires_in=60))
    assert access is not None
    assert access.rows == RowScope(frozenset([3]), frozenset([7, 8]))
    assert (access.key, access.token, access.rate, access.burst) == ("0a", "t1", 50, 500)
    assert access.expires_ms == NOW // 1000 * 1000 + 60_000
    assert not access.digest


def test_a_token_of_nothing_in_particular_allows_what_its_key_does_but_never_admin(here: Installation) -> None:
    assert here.access(here.buy()) == replace(KEY.access(), token="t1", expires_ms=NOW // 1000 * 1000 + HOUR_MS)
    plain, admin = here.access(here.buy(ROOT_KEY)), here.access(here.buy(ROOT_KEY, scopes=["admin"]))
    assert plain is not None and admin is not None
    assert (plain.admin, admin.admin) == (False, True)
    assert plain.scopes == ("read",)
    assert admin.scopes == ("read", "admin")


def test_a_new_key_works_at_once_and_unknown_ones_seldom_have_the_keys_read(here: Installation) -> None:
    # Two in a row: the second one does not wait because the keys were read for the first a moment ago.
    for id_ in ("0b", "0c"):
        text = f"adk_{id_}_new"
        assert here.access(MINE) is not None
        here.stored.keys.append(msgspec.structs.replace(KEY, id=id_, digest=digest_of(text)))
        assert here.access(text) is not None
    reads = here.stored.reads
    for _ in range(50):
        here.now_ms += 20
        assert here.access("adk_ff_unknown") is None
    assert reads < here.stored.reads <= reads + 6


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"advertisers": [3, 5]}, 403, "advertiser 5"),
        ({"advertisers": [9]}, 403, "advertiser 9"),
        ({"scopes": ["admin"]}, 403, "scope admin"),
        ({"scopes": ["read", "write"]}, 400, "write"),
        ({"expires_in": 86_401}, 422, "86400"),
        ({"origin": "https://dash.example.com/page"}, 400, "origin"),
        ({"origin": "*"}, 400, "origin"),
        ({"origin": "https://a.test,https://b.test"}, 400, "origin"),
        ({"origin": "null"}, 400, "origin"),
    ],
    ids=str,
)
def test_what_is_wider_than_the_key_or_wrong_is_named(
    here: Installation, request_: dict[str, Any], status: int, named: str
) -> None:
    with pytest.raises(BadQuestion, match=named) as error:
        here.buy(**request_)
    assert error.value.status == status
    assert error.value.parameter == next(iter(request_))


def test_a_key_of_some_campaigns_sells_no_other_and_none_that_outlives_it(here: Installation) -> None:
    here.change(every_campaign=False, campaigns=[7], expires_ms=NOW + DAY_MS)
    with pytest.raises(BadQuestion, match="campaign 8") as error:
        here.buy(campaigns=[7, 8])
    assert error.value.kind == "wider-than-key"
    with pytest.raises(BadQuestion, match="outlive its key") as error:
        here.buy(expires_in=86_400)
    assert (error.value.status, error.value.parameter) == (422, "expires_in")
    here.now_ms = NOW + DAY_MS - 10_000
    access = here.access(here.buy())
    assert access is not None
    assert access.campaigns == frozenset([7])
    assert access.expires_ms <= NOW + DAY_MS


_IDS = st.none() | st.frozensets(st.integers(0, 5), min_size=1)


@given(st.tuples(_IDS, _IDS), st.tuples(_IDS, _IDS), st.integers(0, 5), st.integers(0, 5))
def test_no_token_shows_a_row_that_its_key_does_not_show(
    key: tuple[Any, Any], token: tuple[Any, Any], advertiser: int, campaign: int
) -> None:
    """Also one whose claims are wider: what the key allows is asked again each time."""
    claims = Claims(
        "i",
        "k",
        "t",
        0,
        1,
        "",
        ["read"],
        None if token[0] is None else sorted(token[0]),
        None if token[1] is None else sorted(token[1]),
    )
    narrowed = Access("k", key[0], False, campaigns=key[1]).narrowed(claims).rows
    both = [RowScope(*scope).sees(advertiser, campaign) for scope in (key, token)]
    assert narrowed.sees(advertiser, campaign) == all(both)


def test_a_token_expires_with_the_leeway_of_clocks(here: Installation) -> None:
    token = here.buy(expires_in=60)
    end_ms = NOW // 1000 * 1000 + 60_000 + LEEWAY_S * 1000
    here.now_ms = end_ms - 1
    assert here.access(token) is not None
    here.now_ms = end_ms
    with pytest.raises(ExpiredToken) as error:
        here.access(token)
    assert error.value.expired_ms == end_ms - LEEWAY_S * 1000
    # A router whose clock is behind accepts a token that was bought a moment ago, and none from further ahead.
    here.now_ms = NOW // 1000 * 1000 - LEEWAY_S * 1000
    assert here.access(token) is not None
    here.now_ms -= 1
    with pytest.raises(ExpiredToken):
        here.access(token)


@pytest.mark.parametrize(
    "change", [{"revoked_ms": NOW}, {"expires_ms": NOW + 1}, {"digest": digest_of("adk_0a_new")}], ids=str
)
def test_a_token_is_refused_once_its_key_is_revoked_expired_or_has_another_secret(
    here: Installation, change: dict[str, Any]
) -> None:
    token = here.buy()
    assert here.access(token) is not None
    here.change(**change)
    assert here.access(token) is None


def test_a_token_lasts_through_the_grace_of_a_former_secret(here: Installation) -> None:
    token = here.buy()
    here.change(digest=digest_of("adk_0a_new"), former_digest=digest_of(MINE), former_until_ms=NOW + HOUR_MS)
    assert here.access(token) is not None
    assert here.access(here.buy("adk_0a_new")) is not None
    here.now_ms = NOW + HOUR_MS
    here.keyring.access("adk_0a_new")
    assert here.access(token) is None


def test_another_root_key_revokes_the_tokens_of_the_former_one(here: Installation) -> None:
    token = here.buy(ROOT_KEY, scopes=["admin"])
    assert here.access(token) is not None
    assert Installation(root="another-key-of-the-installation-it").access(token) is None
    assert Installation(root="").access(token) is None


def test_the_signing_secret_is_rotated_without_an_outage(here: Installation) -> None:
    old = here.buy()
    during = Installation(secret=FORMER, former=SECRET)
    assert during.access(old) is not None
    # Routers that are not restarted yet know the new secret as the former one: neither refuses the other's.
    assert Installation(former=FORMER).access(during.buy()) is not None
    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(during.buy())["kid"]
    after = Installation(secret=FORMER)
    assert after.access(old) is None
    assert after.access(during.buy()) is not None


def _signing_key(installation: Installation) -> bytes:
    signer: Any = installation.keyring.signer
    return bytes(signer._current)


def _forge(token: str, *, key: Any = None, algorithm: str = "HS256", header: dict[str, Any] | None = None, **claims: Any) -> str:  # fmt: skip
    payload = jwt.decode(token, options={"verify_signature": False}) | claims
    return jwt.encode(
        {name: value for name, value in payload.items() if value is not None}, key or "", algorithm,
        jwt.get_unverified_header(token) | {"alg": algorithm} | (header or {}),
    )  # fmt: skip


def _without_algorithm(token: str, name: str) -> str:
    def encode(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

    _, payload, signature = token.split(".")
    return f"{encode(jwt.get_unverified_header(token) | {'alg': name})}.{payload}.{signature if name != 'none' else ''}"


_ATTACKS: dict[str, Callable[[Installation, str], str]] = {
    "no algorithm": lambda here, token: _without_algorithm(token, "none"),
    "no algorithm, signed": lambda here, token: _without_algorithm(token, "nOnE"),
    "another algorithm, same key": lambda here, token: _forge(token, key=_signing_key(here), algorithm="HS512"),
    "a public-key algorithm": lambda here, token: _without_algorithm(token, "RS256"),
    "signed with the raw secret": lambda here, token: _forge(token, key=SECRET),
    "signed with the key's id": lambda here, token: _forge(token, key=jwt.get_unverified_header(token)["kid"].ljust(32)),
    "a kid that is a path": lambda here, token: _forge(token, key=_signing_key(here), header={"kid": "../../dev/null"}),
    "no kid": lambda here, token: jwt.encode(
        jwt.decode(token, options={"verify_signature": False}), _signing_key(here), "HS256"
    ),
    "another installation, same secret": lambda here, token: Installation(StoredKeys(id="installation-2")).buy(),
    "another installation": lambda here, token: Installation(StoredKeys(id="installation-2"), secret=FORMER).buy(),
    "another key": lambda here, token: _forge(token, key=_signing_key(here), sub="0b"),
    "the root key, by name": lambda here, token: _forge(token, key=_signing_key(here), sub="root"),
    "no key": lambda here, token: _forge(token, key=_signing_key(here), sub=None),
    "a number for a key": lambda here, token: _forge(token, key=_signing_key(here), sub=7),
    "no end": lambda here, token: _forge(token, key=_signing_key(here), exp=None),
    "an endless end": lambda here, token: _forge(token, key=_signing_key(here), exp="never"),
    "an unknown claim": lambda here, token: _forge(token, key=_signing_key(here), admin=True),
    "no fingerprint": lambda here, token: _forge(token, key=_signing_key(here), fpr=""),
    "two signatures": lambda here, token: f"{token}.{token.rpartition('.')[2]}",
    "a line break at its end": lambda here, token: f"{token}\n",
    "padding": lambda here, token: f"{token}=",
    "empty": lambda here, token: "..",
    "long": lambda here, token: f"{'e' * 70_000}.{token.partition('.')[2]}",
}  # fmt: skip


@pytest.mark.parametrize("attack", _ATTACKS)
def test_a_forged_or_foreign_token_is_refused(here: Installation, attack: str) -> None:
    token = here.buy()
    assert here.access(token) is not None
    assert here.access(_ATTACKS[attack](here, token)) is None


@given(st.data())
def test_a_token_that_differs_in_any_letter_is_refused(data: st.DataObject) -> None:
    here = Installation()
    token = here.buy(campaigns=[7])
    at = data.draw(st.integers(0, len(token) - 1) | st.just(len(token) - 1))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.+/= \n\0é"))
    if letter != token[at]:
        assert here.access(token[:at] + letter + token[at + 1 :]) is None


def test_a_short_secret_signs_nothing() -> None:
    assert not TokenSigner("short").can_sign
    assert not TokenSigner("", FORMER).can_sign
    assert Installation(secret="", former=SECRET).access(Installation().buy()) is not None


def test_a_token_of_as_many_ids_as_may_be_named_is_refused_before_a_proxy_refuses_it(here: Installation) -> None:
    few, many = (
        here.buy(campaigns=list(range(10**6, 10**6 + 400))),
        here.buy(campaigns=[2**63 - 1 - n for n in range(500)]),
    )
    assert len(few) <= MAX_BYTES < len(many)
    assert here.access(few) is not None
    assert here.access(many) is None


@pytest.mark.parametrize("shape", ["?token={}", "?a=1&Access_Token={}", "?q={}", "?%74oken=x", "?key=adk_0a_x", "?q=adk_0a_x", "?q=%2561dk_0a_x"])  # fmt: skip
def test_a_key_or_token_in_an_address_is_found_under_any_name(here: Installation, shape: str) -> None:
    text = shape.format(here.buy())
    assert secrets_in_urls.find_secret("/v1/metrics", text.removeprefix("?").encode()) is not None
    assert secrets_in_urls.find_secret(f"/v1/keys/{here.buy()}", b"") is not None
    assert secrets_in_urls.find_secret("/v1/keys/adk_0a_x/rotate", b"") is not None


def test_the_installations_own_key_is_found_in_an_address_too() -> None:
    key = "0wYx-4_hT1kQzR7nVb2LmS9c"
    for path, query in (
        (f"/v1/{key}", ""),
        ("/v1/metrics", f"q={key}"),
        ("/v1/metrics", f"q={key}".replace("h", "%68")),
    ):
        assert secrets_in_urls.find_secret(path, query.encode(), key) is not None
        assert secrets_in_urls.find_secret(path, query.encode(), "") is None
    # One of a test's is a word of any address.
    assert secrets_in_urls.find_secret("/v1/metrics", b"a=1", "metrics") is None


@pytest.mark.parametrize("query", ["campaign_id=7&start=-1h&end=now", "cursor=eyJvZiI6Im1ldHJpY3MifQ.3fJ_ab-9xZ&start=2026-11-20T00:00:00.000Z", "q=keynote.token.io", "%zz%%"])  # fmt: skip
def test_other_addresses_are_served(query: str) -> None:
    assert secrets_in_urls.find_secret("/v1/metrics", query.encode()) is None


def test_the_secret_of_a_rotated_key_is_sent_also_while_its_uses_cannot_be_read() -> None:
    key = KEY

    class FakeKeys:
        def all(self) -> list[Key]:
            return [key]

        def rotate(self, id_: str, grace_ms: int, actor: str) -> tuple[Key, str]:
            return key, "adk_the-new-secret"

    class AwayUses:
        def read(self) -> dict[str, Any]:
            raise Unavailable("ClickHouse: gone")

    keyring = SimpleNamespace(expire=lambda: None)
    operations = KeyOperations(cast(Any, FakeKeys()), cast(Any, keyring), cast(Any, AwayUses()), lambda: NOW)
    request = SimpleNamespace(path_params={"id": key.id}, state=SimpleNamespace(body=b"{}"))
    reply = operations.rotate(cast(Any, request), Access("root", None, admin=True))
    assert json.loads(reply.body)["key"] == "adk_the-new-secret"
