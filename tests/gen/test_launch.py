import subprocess
import sys

import pytest
from longtake.errors import UserError
from longtake.launch import Launch, join_timeout, read_address, read_environment


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_environment({}) == read_environment({"WORLD_SIZE": "1"}) == Launch(0, 1, 0)
    assert read_environment({"WORLD_SIZE": "", "RANK": ""}) == Launch()


def test_a_launchers_numbers_are_read() -> None:
    three = {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    assert read_environment(three) == Launch(2, 3, 0, one_machine=False)
    assert read_environment({**three, "LOCAL_WORLD_SIZE": "3"}).one_machine
    assert read_environment({**three, "MASTER_ADDR": "localhost"}).one_machine
    assert read_address(three) == ("node7", 29500)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "abc"}, "RANK is 'abc'"),
        ({"RANK": "\u00b2", "WORLD_SIZE": "3"}, "RANK is '\u00b2'"),
        ({"RANK": "0", "WORLD_SIZE": "\u00b2"}, "WORLD_SIZE is '\u00b2'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"RANK": "1"}, "RANK is set but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but RANK is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks go from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
)
def test_a_wrong_environment_is_one_line(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        read_environment(variables)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


@pytest.mark.parametrize("port", ["abc", "99999", "0", "\u00b2"])
def test_a_port_that_cannot_be_is_one_line(port: str) -> None:
    with pytest.raises(UserError, match="MASTER_PORT is '.*'; it must be a whole number from 1 to 65535"):
        read_address({"MASTER_ADDR": "localhost", "MASTER_PORT": port})
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        read_address({"MASTER_PORT": port})


def test_the_environment_is_read_without_torch() -> None:
    code = "import sys, longtake.launch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_join_timeout_is_a_whole_number_of_seconds_from_the_environment() -> None:
    assert join_timeout(300, {}) == 300
    assert join_timeout(300, {"LONGTAKE_JOIN_TIMEOUT": "20"}) == 20
    for wrong in ("0", "soon", "-5", "1e3", "86401"):
        with pytest.raises(UserError, match="LONGTAKE_JOIN_TIMEOUT is .*; it must be a whole number from 1 to 86400"):
            join_timeout(300, {"LONGTAKE_JOIN_TIMEOUT": wrong})
