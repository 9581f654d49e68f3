"""A ServerApp and a ClientApp of your own: students of three architectures, one of them on each client in turn."""

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedstill.client.app import client_app
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.learning import Training
from fedstill.common.scenario import PartitionPlan, ProxyPlan, TaskPlan
from fedstill.common.tasks.image import ImageTask
from fedstill.server.strategy import Distillation
from fedstill.simulations.engine import LocalGrid

PLAN = TaskPlan(
    task=ImageTask(source="digits"),
    models=("mlp-small", "cnn-small", "linear-softmax"),
    proxy=ProxyPlan(samples=400),
    partition=PartitionPlan(kind="dirichlet", alpha=0.5),
)

client: ClientApp = client_app(task=PLAN)
server = ServerApp()


def play(grid: Grid) -> None:
    strategy = Distillation(
        algorithm=FedMD(temperature=2.0), task=PLAN, clients=6, training=Training(epochs=3, batch_size=32)
    )
    result = strategy.start(grid=grid, num_rounds=2)
    for step, measures in result.train_metrics_clientapp.items():
        print(f"step {step}:", {name: f"{value:.1%}" for name, value in measures.items() if name.endswith(".accuracy")})


@server.main()
def main(grid: Grid, context: Context) -> None:
    """What Flower calls: name it `serverapp = "own_server_and_client:server"` in your pyproject.toml."""
    play(grid)


if __name__ == "__main__":
    play(LocalGrid(client, clients=6))
