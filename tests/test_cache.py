from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from demo.parts import Postgres
from glm4v_ops.cache import AnswerCache, AnswerKey, CachedAnswer, NoCache
from glm4v_ops.errors import PublishError, SettingsError, TablesUnavailable
from glm4v_ops.sink.postgres import migrate


def _key(name: str, answer_id: str = "caption-1") -> AnswerKey:
    return hashlib.sha256(name.encode()).hexdigest(), answer_id


def _answer(text: str = "A cat.") -> CachedAnswer:
    return CachedAnswer(text, "stop", 180, 22)


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    dsn = postgres.new_database()
    migrate(dsn)
    return dsn


def test_a_stored_answer_is_found_under_its_image_and_answer_id_only(dsn: str) -> None:
    with AnswerCache(dsn) as cache:
        cache.store({_key("one"): _answer()})
        wanted = [_key("one"), _key("one", "caption-2"), _key("two"), _key("one")]
        assert cache.lookup(wanted) == {_key("one"): _answer()}
        assert cache.lookup([]) == {}


def test_an_answer_outlives_the_process_that_stored_it(dsn: str) -> None:
    with AnswerCache(dsn) as cache:
        cache.store({_key("kept"): CachedAnswer("cut sho", "length", 1, 2)})
    with AnswerCache(dsn) as cache:
        assert cache.lookup([_key("kept")]) == {_key("kept"): CachedAnswer("cut sho", "length", 1, 2)}


def test_the_first_answer_stays(dsn: str) -> None:
    standing = {_key("first"): _answer("first"), _key("another"): _answer("another")}
    with AnswerCache(dsn) as cache:
        cache.store({_key("first"): _answer("first")})
        assert cache.store({_key("first"): _answer("second"), _key("another"): _answer("another")}) == standing
        assert cache.lookup(standing) == standing


@pytest.mark.parametrize("text", ["", "一只猫\n「你好」", "😀 \\N \t \"quoted\" 'it'", "\\x00 {a,b} NULL"])
def test_an_answer_comes_back_exactly_as_it_was(dsn: str, text: str) -> None:
    with AnswerCache(dsn) as cache:
        cache.store({_key("exact" + text): _answer(text)})
        assert cache.lookup([_key("exact" + text)]) == {_key("exact" + text): _answer(text)}


def test_nul_comes_back_as_a_replacement_character(dsn: str) -> None:
    with AnswerCache(dsn) as cache:
        cache.store({_key("nul"): _answer("a\x00b")})
        assert cache.lookup([_key("nul")])[_key("nul")].text == "a\ufffdb"


def test_a_lost_connection_is_made_again(dsn: str) -> None:
    with AnswerCache(dsn) as cache:
        cache.store({_key("before"): _answer()})
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'glm4v_ops cache' AND datname = current_database()"
            )
        assert cache.lookup([_key("before")]) == {_key("before"): _answer()}


def test_a_database_that_does_not_answer_is_no_empty_cache(dsn: str, postgres: Postgres) -> None:
    cache = AnswerCache(dsn.replace(f":{postgres.port}/", ":1/"))
    with pytest.raises(TablesUnavailable) as caught:
        cache.lookup([_key("any")])
    assert postgres.password not in str(caught.value)
    with pytest.raises(TablesUnavailable):
        cache.store({_key("any"): _answer()})


def test_a_database_without_tables_names_the_command_that_makes_them(postgres: Postgres) -> None:
    with AnswerCache(postgres.new_database()) as cache, pytest.raises(PublishError, match="glm4v_ops migrate"):
        cache.lookup([_key("any")])


def test_a_wrong_password_is_a_setting_and_is_not_repeated(dsn: str, postgres: Postgres) -> None:
    with pytest.raises(SettingsError) as caught:
        AnswerCache(dsn.replace(postgres.password, "not-the-password")).lookup([_key("any")])
    assert "not-the-password" not in str(caught.value)


def test_many_threads_may_share_one_cache_and_store_the_same_answers(dsn: str) -> None:
    keys = [_key(f"shared {index}") for index in range(200)]
    orders = (keys, keys[::-1], keys[50:])
    with AnswerCache(dsn) as one, AnswerCache(dsn) as two, ThreadPoolExecutor(6) as threads:
        storing = [
            threads.submit(cache.store, dict.fromkeys(order, _answer())) for cache in (one, two) for order in orders
        ]
        for stored in storing:
            stored.result()
        assert len(one.lookup(keys)) == 200


def test_no_cache_knows_and_keeps_nothing() -> None:
    cache = NoCache()
    assert cache.store({_key("any"): _answer()}) == {_key("any"): _answer()}
    assert cache.lookup([_key("any")]) == {}
