"""API keys and rates: who is let in, and how much each may ask for."""

import hashlib
import math
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import cli
from service.http.security import (
    BurstError,
    KeysError,
    RateLimitedError,
    TokenBuckets,
    charge,
    load_keys,
    new_key,
)
from service.priority import Priority

SECOND = 1_000_000_000


@pytest.fixture
def write(tmp_path):
    def write(*lines: str):
        path = tmp_path / "keys"
        path.write_text("\n".join(lines))
        return path

    return write


# Keys.


def test_a_key_is_known_by_its_line_and_no_other_is(write):
    alice, bob = new_key("alice"), new_key("bob")
    keys = load_keys(write("# who may come in", "", alice.line, f"  {bob.line}  # since May"))
    assert keys.find(alice.secret.encode()) == ("alice", Priority.INTERACTIVE)
    assert keys.find(bob.secret.encode()) == ("bob", Priority.INTERACTIVE)
    for other in (new_key("alice").secret, alice.secret[:-1], alice.secret + "=", alice.line, ""):
        assert keys.find(other.encode()) is None


def test_the_line_holds_the_hash_and_not_the_key():
    made = new_key("alice")
    assert made.line == f"alice:{hashlib.sha256(made.secret.encode()).hexdigest()}"
    assert len(made.secret) >= 43, "256 bits in base64"


def test_a_client_may_have_two_keys_while_it_changes_over(write):
    old, new = new_key("alice"), new_key("alice")
    keys = load_keys(write(old.line, new.line, new.line))
    assert {keys.find(key.secret.encode()).name for key in (old, new)} == {"alice"}


@pytest.mark.parametrize("priority", Priority)
def test_a_key_has_the_priority_that_its_line_says(write, priority):
    made = new_key("nightly", priority)
    assert made.line.endswith(":bulk") == (priority is Priority.BULK)
    assert load_keys(write(made.line)).find(made.secret.encode()) == ("nightly", priority)


def test_one_client_may_have_a_key_for_each_priority(write):
    fast, slow = new_key("alice"), new_key("alice", Priority.BACKGROUND)
    keys = load_keys(write(fast.line, slow.line))
    found = [keys.find(key.secret.encode()) for key in (fast, slow)]
    assert found == [("alice", Priority.INTERACTIVE), ("alice", Priority.BACKGROUND)]


HASH = "a" * 64


@pytest.mark.parametrize(
    "line",
    ["alice", f"alice={HASH}", f":{HASH}", f"alice:{HASH[1:]}", f"alice:{HASH}a", f"a b:{HASH}",
     f"{'a' * 65}:{HASH}", "alice:" + "g" * 64, f"bob:{HASH}", f"bob:{HASH.upper()}",
     f"carol:{HASH[1:]}b:fast", f"carol:{HASH[1:]}b:", f"carol:{HASH[1:]}b:bulk:bulk",
     f"alice:{HASH}:bulk"],
)  # fmt: skip
def test_a_wrong_line_is_named_but_not_quoted(write, line):
    path = write(f"alice:{HASH}", "", line)
    with pytest.raises(KeysError) as error:
        load_keys(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line 3: ")
    assert "\n" not in message
    assert (line.partition(":")[2] or line) not in message
    assert HASH[1:] not in message


def test_a_file_that_lets_nobody_in_is_a_mistake(write, tmp_path):
    with pytest.raises(KeysError, match="holds no key"):
        load_keys(write("# nobody yet"))
    with pytest.raises(KeysError, match="No such file"):
        load_keys(tmp_path / "missing")
    with pytest.raises(KeysError, match="Is a directory"):
        load_keys(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        KeysError, match=r"binary: not UTF-16 text \(byte 0x.. in line 1\): save it as UTF-8"
    ):
        load_keys(tmp_path / "binary")


# The command line.


@pytest.fixture
def sid(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sid", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_prints_a_line_for_the_file_and_the_key_apart_from_it(sid, write):
    status, line, shown = sid("key", "alice")
    assert status == 0
    secret = shown.split()[-1]
    assert load_keys(write(line)).find(secret.encode()).name == "alice"
    assert line.count("\n") == shown.count("\n") == 1


def test_the_command_makes_a_key_of_less_priority(sid, write):
    status, line, shown = sid("key", "nightly", "--priority", "background")
    assert status == 0
    known = load_keys(write(line)).find(shown.split()[-1].encode())
    assert known == ("nightly", Priority.BACKGROUND)
    status, out, err = sid("key", "nightly", "--priority", "soon")
    assert (status, out) == (2, "")
    assert err == "error: --priority is interactive, bulk or background, not soon\n"


def test_a_name_that_the_file_cannot_hold_is_one_line(sid):
    for name in ("a:b", "a#b", "", "a\nb", "x" * 65):
        status, out, err = sid("key", name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")


def test_a_rate_without_keys_is_one_line_that_names_both(sid, monkeypatch):
    monkeypatch.setenv("SID_RATE", "5")
    status, out, err = sid("models")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: SID_RATE ")
    assert "SID_KEYS" in err


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_that_is_none_is_named(sid, monkeypatch, rate):
    monkeypatch.setenv("SID_RATE", rate)
    monkeypatch.setenv("SID_KEYS", "keys")
    status, _, err = sid("models")
    assert status == 2
    assert err.startswith("error: SID_RATE: ")


# Rates, on a simulated clock. Steps may go back in time.

steps = st.lists(
    st.tuples(
        st.integers(-2 * SECOND, 10 * SECOND) | st.just(0),
        st.sampled_from(["alice", "bob"]),
        st.integers(1, 12),
    ),
    max_size=40,
)
rates = st.floats(0.01, 1e6) | st.sampled_from([0.5, 1.0, 3.0, 7.0])
bursts = st.integers(1, 10)


class Clock:
    def __init__(self, now: int = 5 * SECOND) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@given(rates, bursts, steps)
def test_no_window_is_granted_more_than_the_burst_and_the_rate(rate, burst, steps):
    clock = Clock()
    buckets = TokenBuckets(rate, burst, clock)
    granted: dict[str, list[tuple[int, int]]] = {"alice": [], "bob": []}
    for advance, client, n in steps:
        clock.now += advance
        if buckets.take(client, n) == 0:
            granted[client].append((clock.now, n))
    for grants in granted.values():
        for first, (start, _) in enumerate(grants):
            total = 0
            for end, n in grants[first:]:
                total += n
                assert total <= burst + Fraction(rate) * (end - start) / SECOND


@given(rates, bursts, steps)
def test_waiting_as_told_is_enough_and_no_longer_than_needed(rate, burst, steps):
    clock = Clock()
    buckets = TokenBuckets(rate, burst, clock)
    for advance, client, n in steps:
        clock.now += advance
        wait = buckets.take(client, n)
        if 0 < wait < math.inf:
            clock.now += round(wait * SECOND) - 1
            assert buckets.take(client, n) > 0
            clock.now += 1
            assert buckets.take(client, n) == 0


@given(rates, bursts, steps)
def test_a_refusal_takes_nothing_from_anyone(rate, burst, steps):
    clock = Clock()
    asked, granted = TokenBuckets(rate, burst, clock), TokenBuckets(rate, burst, clock)
    for advance, client, n in steps:
        clock.now += advance
        wait = asked.take(client, n)
        if wait:
            assert asked.take(client, n) == wait
        else:
            assert granted.take(client, n) == 0


@given(rates, bursts)
def test_a_full_bucket_grants_its_burst_at_once_and_then_the_rate(rate, burst):
    clock = Clock()
    buckets = TokenBuckets(rate, burst, clock)
    assert buckets.take("alice", burst) == 0
    wait = buckets.take("alice", 1)
    assert wait == pytest.approx(1 / rate, abs=2 / SECOND)
    assert buckets.take("bob", burst) == 0, "another client's bucket is its own"


@given(rates, bursts, st.integers(1, 1000))
def test_more_than_a_full_bucket_holds_is_never_granted(rate, burst, more):
    buckets = TokenBuckets(rate, burst, Clock())
    assert buckets.take("alice", burst + more) == math.inf
    assert buckets.take("alice", burst) == 0


def test_charging_says_when_to_come_back_or_that_it_is_no_use():
    app = SimpleNamespace(state=SimpleNamespace(buckets=TokenBuckets(2, 4, Clock())))
    request = {"app": app, "state": {"client": "alice"}}
    charge(request, 4)
    with pytest.raises(RateLimitedError) as limited:
        charge(request, 3)
    assert limited.value.retry_after == 1.5
    with pytest.raises(BurstError, match="at most 4 images at once, not 5"):
        charge(request, 5)


def test_charging_is_free_where_no_rate_is_set():
    charge({"app": SimpleNamespace(state=SimpleNamespace(buckets=None)), "state": {}}, 10**9)
