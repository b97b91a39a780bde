"""A generic gRPC client that knows nothing but the address: reflection and health tell it the rest."""

import os

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

KEY = [("authorization", f"Bearer {os.environ['INKSTONE_KEY']}")]


@pytest.fixture(scope="module")
def channel():
    with grpc.insecure_channel(os.environ["INKSTONE_URL"].removeprefix("http://")) as channel:
        yield channel


@pytest.fixture(scope="module")
def pool(channel):
    return DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def call(channel, pool, method, stream=False, metadata=KEY, **fields):
    service, name = method.rsplit("/", 1)
    method = pool.FindServiceByName(service).FindMethodByName(name)
    answer = GetMessageClass(method.output_type)
    make = channel.unary_stream if stream else channel.unary_unary
    rpc = make(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    return rpc(GetMessageClass(method.input_type)(**fields), metadata=metadata, timeout=60)


def test_a_picture_is_submitted_watched_and_fetched(channel, pool):
    service = "inkstone.v1.ImageService"
    task = {"prompt": "a 3d cat", "steps": 6, "seed": 7}
    task_id = call(channel, pool, f"{service}/Submit", task=task).task.id
    updates = list(call(channel, pool, f"{service}/Watch", stream=True, task_id=task_id))
    end = updates[-1].task
    assert end.phase == 4 and end.images[0].sha256
    image = call(channel, pool, f"{service}/GetImage", task_id=task_id, index=0)
    assert image.data.startswith(b"\x89PNG")
    listed = call(channel, pool, f"{service}/List", page_size=100).tasks
    assert task_id in [task.id for task in listed]


@pytest.mark.parametrize("service", ["", "inkstone.v1.ImageService", "inference.GRPCInferenceService"])
def test_health_says_serving(channel, pool, service):
    assert call(channel, pool, "grpc.health.v1.Health/Check", metadata=None, service=service).status == 1


@pytest.mark.parametrize(
    ("task", "code", "field"),
    [
        ({"prompt": ""}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "a cat", "width": 100}, grpc.StatusCode.INVALID_ARGUMENT, "width"),
        ({"prompt": "a cat", "scheduler": 99}, grpc.StatusCode.INVALID_ARGUMENT, "scheduler"),
        ({"prompt": "a cat", "prompt_syntax": 99}, grpc.StatusCode.INVALID_ARGUMENT, "prompt_syntax"),
        ({"prompt": "a cat", "guidance_rescale": 1.5}, grpc.StatusCode.INVALID_ARGUMENT, "guidance_rescale"),
        ({"prompt": "a cat", "model": "nope"}, grpc.StatusCode.NOT_FOUND, "model"),
    ],
)
def test_bad_input_names_the_field_in_metadata(channel, pool, task, code, field):
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, pool, "inkstone.v1.ImageService/Submit", task=task)
    assert raised.value.code() == code
    assert dict(raised.value.trailing_metadata())["inkstone-field"] == field


def test_a_call_without_a_key_is_unauthenticated(channel, pool):
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, pool, "inkstone.v1.ImageService/List", metadata=None)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
