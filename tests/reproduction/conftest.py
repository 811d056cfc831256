"""The report that several test files look at."""

import pytest

from tf_unravel import cli


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    arguments = ["paper", "report", "--scale=smoke", f"--run_dir={folder}", "--processes=2"]
    assert cli.main(arguments) == 0
    return folder, arguments
