"""KServe's client package, over HTTP and gRPC, against a running platform: INKSTONE_URL and INKSTONE_KEY name it."""

import asyncio
import base64
import importlib.util
import os
import sys
import types
from unittest.mock import MagicMock

import grpc
import httpx
import numpy as np
import pytest

# `import kserve` brings its server and Kubernetes, so it is not run: the client's modules are imported by themselves. What those import for
# the server, and do not use here, is not installed (kserve.txt).
for absent in ("pandas", "psutil", "cloudevents.conversion", "cloudevents.http", "fastapi.responses"):
    sys.modules[absent] = MagicMock()
package = types.ModuleType("kserve")
package.__path__ = importlib.util.find_spec("kserve").submodule_search_locations
sys.modules["kserve"] = package

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402

PROMPT = b"a 3d cat on a blue background"
MODEL = "inkstone-demo"
URL = os.environ["INKSTONE_URL"]
KEY = {"authorization": "Bearer " + os.environ["INKSTONE_KEY"]}


class Http:
    Error = httpx.HTTPStatusError

    @staticmethod
    async def call(method, *arguments, headers=KEY):
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            # The client writes headers of its own into those that it is given.
            return await getattr(client, method)(URL, *arguments, headers=dict(headers))

    def infer(self, request, **options):
        return asyncio.run(self.call("infer", request, request.model_name, **options))


class Grpc:
    Error = grpc.RpcError

    @staticmethod
    async def call(method, *arguments, headers=KEY):
        async with InferenceGRPCClient(URL.removeprefix("http://")) as client:
            return await getattr(client, method)(*arguments, headers=tuple(headers.items()))

    def infer(self, request, **options):
        return asyncio.run(self.call("infer", request, **options))


@pytest.fixture(params=[Http, Grpc], ids=["http", "grpc"])
def wire(request):
    return request.param()


def request(binary=True, model=MODEL, **more):
    """One picture of a few steps; `steps` is taken out of `more`, which the request has besides."""
    values = {"PROMPT": np.array([PROMPT], dtype=np.object_), "SEED": np.array([7], dtype=np.uint64)}
    values["STEPS"] = np.array([more.pop("steps", 4)], dtype=np.int32)
    kinds = {"PROMPT": "BYTES", "SEED": "UINT64", "STEPS": "INT32"}
    inputs = [InferInput(name, [1], kinds[name]) for name in values]
    for tensor in inputs:
        tensor.set_data_from_numpy(values[tensor.name], binary_data=binary)
    return InferRequest(model, inputs, request_id="my-request", **more)


def named(answer):
    return {output.name: output for output in answer.outputs}


def test_the_server_and_the_model_are_ready(wire):
    assert asyncio.run(wire.call("is_server_live", headers={}))
    assert asyncio.run(wire.call("is_server_ready", headers={}))
    assert asyncio.run(wire.call("is_model_ready", MODEL))
    assert not asyncio.run(wire.call("is_model_ready", "another"))


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_are_read_whichever_way_the_request_is_written(wire, binary):
    answer = wire.infer(request(binary, parameters={"image_format": "raw", "binary_data_output": True}))
    outputs = named(answer)
    assert (answer.id, answer.model_name) == ("my-request", MODEL)
    pixels = outputs["IMAGE"].as_numpy()
    assert (pixels.shape, pixels.dtype) == ((1, 128, 128, 3), np.uint8)
    assert outputs["SEED"].as_numpy().tolist() == [7]
    assert outputs["TASK_ID"].as_numpy().size == 1


def test_a_file_is_base64_in_json_and_itself_over_grpc(wire):
    image = named(wire.infer(request()))["IMAGE"].as_numpy()[0]
    if isinstance(image, str):
        assert isinstance(wire, Http)
        image = base64.b64decode(image)
    assert image.startswith(b"\x89PNG")


def test_only_the_outputs_asked_for_are_answered(wire):
    assert set(named(wire.infer(request()))) == {"IMAGE", "SEED", "TASK_ID"}
    assert list(named(wire.infer(request(request_outputs=[RequestedOutput("IMAGE")])))) == ["IMAGE"]
    # What is drawn is answered in any case.
    with pytest.raises(wire.Error) as raised:
        wire.infer(request(request_outputs=[RequestedOutput("SEED")]))
    assert "IMAGE" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "headers", "names"),
    [
        ({"steps": -1}, KEY, "STEPS"),
        ({"model": "another"}, KEY, "another"),
        ({"parameters": {"image_format": "bmp"}}, KEY, "image_format"),
        ({}, {}, "credentials"),
    ],
)
def test_bad_input_raises_the_clients_error_and_says_what_is_wrong(wire, change, headers, names):
    with pytest.raises(wire.Error) as raised:
        wire.infer(request(**change), headers=headers)
    assert names in str(raised.value)
