"""A run's model as a service, and a client that asks it: one process here, two machines in the world."""

import torch

from fedstill.common.data.federation import federate
from fedstill.common.inference.about import classes_of
from fedstill.common.inference.endpoint import Endpoint
from fedstill.common.scenario import parse
from fedstill.common.sources import override, read_table
from fedstill.server.folder import begin_folder
from fedstill.server.serving.loading import server_models
from fedstill.server.serving.service import Service
from fedstill.simulations.run import simulate

scenario = parse(override(read_table("digits"), {"rounds.count": 2, "teacher.kind": "model"}))
folder = begin_folder(None, scenario, data_dir=None)
simulate(scenario, folder)

# Prepared inputs, as the model reads them.
test = federate(scenario, None).tasks["digits"].test
assert test is not None

with Service(server_models(folder)) as service, Endpoint(f"127.0.0.1:{service.port}") as endpoint:
    told = endpoint.metadata("digits")
    print("classes", *classes_of(told.properties), "of weights", told.properties["weights"][:12])
    inputs = {"inputs": ("FP32", test.inputs[:300].numpy())}
    answer = torch.from_numpy(endpoint.infer("digits", inputs, "probabilities").copy())
    print(f"accuracy {float((answer.argmax(1) == test.targets[:300]).float().mean()):.1%}")
