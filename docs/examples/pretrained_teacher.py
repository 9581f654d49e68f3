"""A teacher that was trained before the run: it teaches from the first round on, before any client has spoken."""

from pathlib import Path

from fedstill.client.app import client_app
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.data.federation import federate
from fedstill.common.learning import Training, fit
from fedstill.common.models import build_model
from fedstill.common.scenario import Plugin, TaskPlan
from fedstill.common.tasks.image import ImageTask
from fedstill.server.strategy import Distillation
from fedstill.server.teacher.pretrained import save_weights
from fedstill.simulations.engine import LocalGrid

PLAN = TaskPlan(task=ImageTask(), models=("mlp-small",), teacher="cnn-medium")
TRAINING = Training(epochs=2, batch_size=32)
WEIGHTS = Path("teacher.safetensors")

strategy = Distillation(
    algorithm=FedMD(),
    task=PLAN,
    clients=4,
    training=TRAINING,
    teacher=Plugin("pretrained", {"path": str(WEIGHTS), "epochs": 1}),
)

# Any training will do. This one uses the public samples, of which this server happens to know the labels; the inputs
# are prepared as the students' are.
public = federate(strategy.scenario, None).tasks["image"]
teacher = build_model("cnn-medium", public.spec, seed=1)
fit(
    teacher,
    public.proxy.inputs,
    (public.proxy_targets,),
    public.spec.kind.loss,
    training=TRAINING,
    epochs=10,
    seed=1,
)
save_weights(teacher, WEIGHTS)

result = strategy.start(LocalGrid(client_app(task=PLAN), clients=4), num_rounds=2)
for step, measures in result.train_metrics_clientapp.items():
    print(f"step {step}:", {name: f"{value:.1%}" for name, value in measures.items() if name.endswith(".accuracy")})
