import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings
from pydantic import SecretStr

from api.batches import Batches, impatient
from services.promotion.together import CutoversTogether, must_be_first
from services.settings import Settings
from services.storage.database import make_engine
from tests.conftest import TestServers
from tests.integration.properties.stage import Stage
from tests.support.databases import a_database

# A run of several operations and many statements takes time, and its data is what the test is about.
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
# Without the explain phase: it repeats failures hundreds of times, each against the database.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

settings.register_profile(
    "default",
    deadline=None,
    phases=_PHASES,
    suppress_health_check=_SLOW,
    print_blob=True,
    report_multiple_bugs=False,
    # New random runs each time on a developer's machine. On CI the runs are fixed, so no merge depends on chance.
    derandomize=bool(os.environ.get("CI")),
)
settings.register_profile("long", settings.get_profile("default"), max_examples=3000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def stage(servers: TestServers, template: str) -> Iterator[tuple[Stage, asyncio.Runner]]:
    """A stage on its own database, and the event loop to run it on, since Hypothesis does not know asyncio."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        stack = AsyncExitStack()
        url = runner.run(stack.enter_async_context(a_database(servers.database_url, template)))
        database = Settings(database_url=SecretStr(url.render_as_string(hide_password=False)))
        engine = make_engine(database, application_name="tests", pool_size=10)
        stack.push_async_callback(engine.dispose)
        together = CutoversTogether(impatient(database), application_name="together", on_events=lambda: None)
        stage = Stage(engine, Batches(database, together.make, must_be_first=must_be_first))
        yield stage, runner
        assert stage.made_together, "nothing was made without the lock"
        together.close()
        runner.run(stack.aclose())
