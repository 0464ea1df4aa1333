"""Fixtures and settings shared by several tests."""

import gc
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before JAX starts: what is compiled here runs once, so compiling it well is time lost. Compiling a
# program in parts costs a sixth more, and the cores have other tests to run meanwhile. The older
# emitters of fusions take half the time of the newer ones; JAX 0.11 removed their flag on the way,
# and XLA ends the process at a flag that it does not know.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
# Nobody reads from which line of code an operation of a program comes; writing it down in programs
# takes a tenth of the time of tests that compile.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Commands that tests start share a cache of compiled functions, which the first process makes and
# removes. Tests themselves keep what they compile in memory: writing it costs more than it saves.
CACHE = "JAX_COMPILATION_CACHE_DIR"
if CACHE not in os.environ:
    SHARED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ[CACHE] = SHARED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Nor need files of tests survive a power cut: writing each of them to disk takes 10 ms.
fsync, os.fsync = os.fsync, lambda descriptor: None
# Set before PyTorch starts: its threads wait for each other at full load, and tests that run at
# once compete for the cores. One thread is enough.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiling and importing make very many objects: with Python's own limits the garbage collector
# takes up to a fifth of the tests' time.
gc.set_threshold(100_000, 20, 100)

import pytest  # noqa: E402
from helpers.endpoint import SECRET, Endpoint  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# The same examples in each run; `HYPOTHESIS_PROFILE=long` generates many others.
settings.register_profile(
    "short",
    max_examples=24,
    derandomize=True,
    database=None,
    # `bounds` has its own deadline; busy machines would exceed Hypothesis's.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "long", settings.get_profile("short"), max_examples=2000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


# Limit for compiled functions out of the 65,530 memory maps that Linux allows a process; when none
# is left the compiler crashes.
MAPS, MOST_MAPS = Path("/proc/self/maps"), 30_000


# The longest files, longest first: starting one last would leave the other cores idle.
LONGEST = (
    "test_distributed", "test_updates", "test_methods", "test_resume", "test_benchmarks_flux",
    "test_transformer", "test_stored_velocities", "test_train", "test_judge", "test_compare",
    "test_recipe_training", "test_method_losses", "test_splash", "test_lora_diffusers",
    "test_shipped", "test_levels", "test_benchmarks_methods", "test_benchmarks_parity",
    "test_command_line", "test_study", "test_layouts", "test_lora", "test_stopping", "test_merge",
    "test_two_devices", "test_lora_kinds", "test_memory", "test_weights", "test_silenced",
    "test_report_browser", "test_skipped", "test_convert_cli", "test_tpu_fit",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, which one that only starts workers does not."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import helpers.annotations  # noqa: F401
    from jaxtyping import install_import_hook

    # Before any of them is imported: every call checks its annotations, including arrays' shapes.
    install_import_hook(["flux_jax", "convert", "erase", "recipes"], "helpers.annotations.checked")
    import jax

    jax.config.update("jax_compilation_cache_dir", None)
    config.pluginmanager.import_plugin("helpers.flux_case")
    config.pluginmanager.import_plugin("helpers.flux2_case")
    config.pluginmanager.import_plugin("helpers.browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files; the order within a file stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Leave what all tests have imported out of later collections."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """End the process that ran commands, if a test started it."""
    if "helpers.warm" in sys.modules:
        sys.modules["helpers.warm"].close()


@pytest.fixture(scope="module", autouse=True)
def few_maps() -> Iterator[None]:
    """Clear compiled functions between modules when there are very many."""
    yield
    import jax

    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete diffusers pipeline folder with tiny random weights; read-only."""
    from helpers import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline with its weights in shards; read-only."""
    from helpers import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "sharded", max_shard_size="40KB")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A language model that is configured by the environment."""
    made = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_MODEL", "some-model")
    yield made
    made.server.shutdown()
    made.server.server_close()
