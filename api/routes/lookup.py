"""Finding a deployment by its id alone: ids are unique over all agents, and a pipeline often knows nothing else."""

from litestar import get
from litestar.params import FromPath

from api.http.parameters import deployment_key
from api.http.problems import documented
from api.http.responses import DeploymentAnswer
from api.resources import Injected
from services.agents.queries import find_deployment
from services.storage.database import in_transaction


@get("/deployments/{deployment_id:str}", responses=documented(404))
async def read_deployment_by_id(deployment_id: FromPath[str], resources: Injected) -> DeploymentAnswer:
    """The deployment of this id, deleted or not, of whichever agent."""
    key = deployment_key(deployment_id)
    return DeploymentAnswer.of(await in_transaction(resources.reads, lambda session: find_deployment(session, key)))


ROUTES = [read_deployment_by_id]
