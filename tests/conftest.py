"""What several tests share."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete diffusers pipeline folder with tiny random weights; read only."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline with its weights in shards; read only."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "sharded", max_shard_size="40KB")
