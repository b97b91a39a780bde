"""nats-py as a producer, against a running platform: INKSTONE_BROKER and INKSTONE_KEY name it. The protobuf messages are compiled
from proto/ by whoever runs this (scripts/test-clients.sh)."""

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import time
import urllib.request
import uuid

import nats
import pytest
from inkstone.v1 import image_pb2
from nats.js.errors import APIError

# The key that `inkstone up` makes.
TENANT = "local"
SUBJECT = f"inkstone.intake.{TENANT}"
AUTHORIZATION = {"Authorization": "Bearer " + os.environ["INKSTONE_KEY"]}
JSON = {"Content-Type": "application/json"}
PICTURE = {"prompt": "a 3d cat on a blue background", "steps": 4, "seed": 7}


def task_id(key: str) -> str:
    """The id that a key always has (docs/API.md, "NATS producers")."""
    digest = hashlib.sha256(b"inkstone task id\0" + TENANT.encode() + b"\0" + key.encode()).digest()[:16]
    # Version 8 of RFC 9562, whose bits are the maker's own.
    number = int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return str(uuid.UUID(int=number))


def run(test):
    """Runs a test with a connection, as JetStream."""

    async def connected():
        client = await nats.connect(os.environ["INKSTONE_BROKER"])
        try:
            await test(client.jetstream())
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(connected(), 60))


async def outcomes(stream, key: str, until: set[str]):
    """What is told of a key, as messages by event, until one of these events came. They are kept: it need not listen yet when it submits."""
    heard = {}
    told = await stream.subscribe(f"inkstone.outcome.{TENANT}.{task_id(key)}", ordered_consumer=True)
    async for message in told.messages:
        heard[message.headers["Inkstone-Event"]] = message
        if until & heard.keys():
            break
    await told.unsubscribe()
    return heard


async def unproven(stream, key: str):
    """The refusal of a message that showed no key of its tenant, as JSON: those are told on a subject of their own, which keeps the
    last eight, so it is picked out by its reference."""
    told = await stream.subscribe(f"inkstone.outcome.{TENANT}.unproven", ordered_consumer=True)
    async for message in told.messages:
        if message.headers.get("Inkstone-Event") != "task.refused":
            raise AssertionError(f"told where refusals of the unproven are told: {message.headers}")
        if not message.data.startswith(b"{"):
            continue
        refused = json.loads(message.data)
        if refused["reference"] == key:
            await told.unsubscribe()
            return refused


def test_json_is_accepted_drawn_and_told_in_json():
    async def test(stream):
        key = str(uuid.uuid4())
        headers = AUTHORIZATION | JSON | {"Nats-Msg-Id": key}
        stored = await stream.publish(SUBJECT, json.dumps(PICTURE).encode(), headers=headers)
        heard = await outcomes(stream, key, {"task.succeeded", "task.failed", "task.refused"})
        accepted, succeeded = (json.loads(heard[name].data) for name in ("task.accepted", "task.succeeded"))
        assert accepted["task_id"] == succeeded["task"]["id"] == task_id(key)
        assert accepted["reference"] == key
        assert accepted["sequence"] == stored.seq
        picture = succeeded["task"]["images"][0]
        url = os.environ["INKSTONE_URL"] + picture["url"].removeprefix(os.environ["INKSTONE_URL"])
        with urllib.request.urlopen(url) as served:
            assert hashlib.sha256(served.read()).hexdigest() == picture["sha256"]

    run(test)


@pytest.mark.parametrize("header", ["Idempotency-Key", "Nats-Msg-Id"])
def test_a_key_need_not_be_ascii(header):
    async def test(stream):
        key = f"заказ-{uuid.uuid4()}"
        await stream.publish(SUBJECT, json.dumps(PICTURE).encode(), headers=AUTHORIZATION | JSON | {header: key})
        heard = await outcomes(stream, key, {"task.accepted", "task.refused"})
        accepted = json.loads(heard["task.accepted"].data)
        assert (accepted["task_id"], accepted["reference"]) == (task_id(key), key)

    run(test)


def test_protobuf_is_accepted_and_told_in_protobuf():
    async def test(stream):
        key = str(uuid.uuid4())
        payload = image_pb2.SubmitTask(**PICTURE).SerializeToString()
        await stream.publish(SUBJECT, payload, headers=AUTHORIZATION | {"Idempotency-Key": key})
        heard = await outcomes(stream, key, {"task.succeeded", "task.failed", "task.refused"})
        succeeded = image_pb2.Outcome.FromString(heard["task.succeeded"].data)
        assert succeeded.type == image_pb2.TASK_EVENT_SUCCEEDED
        assert succeeded.task.id == task_id(key)
        assert succeeded.task.images[0].seed == 7

    run(test)


def test_the_same_message_twice_is_one_task():
    async def test(stream):
        key = str(uuid.uuid4())
        headers = AUTHORIZATION | JSON | {"Idempotency-Key": key}
        sequences = [
            (await stream.publish(SUBJECT, json.dumps(PICTURE).encode(), headers=headers)).seq for _ in range(2)
        ]
        assert len(set(sequences)) == 2
        heard = await outcomes(stream, key, {"task.succeeded"})
        assert json.loads(heard["task.accepted"].data)["task_id"] == task_id(key)
        other = json.dumps(PICTURE | {"seed": 8}).encode()
        await stream.publish(SUBJECT, other, headers=headers)
        heard = await outcomes(stream, key, {"task.refused"})
        assert json.loads(heard["task.refused"].data)["error"]["code"] == "idempotency_conflict"

    run(test)


@pytest.mark.parametrize(
    ("headers", "payload", "code", "field"),
    [
        (AUTHORIZATION | JSON, b'{"prompt": ', "invalid_argument", None),
        (AUTHORIZATION | JSON, b'{"prompt": "a cat", "stesp": 4}', "invalid_argument", "stesp"),
        (AUTHORIZATION | JSON, b'{"prompt": "a cat", "steps": 100000}', "invalid_argument", "steps"),
        (AUTHORIZATION | {"Content-Type": "text/plain"}, b"a cat", "unsupported_media_type", None),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_reason(headers, payload, code, field):
    async def test(stream):
        key = str(uuid.uuid4())
        await stream.publish(SUBJECT, payload, headers=headers | {"Nats-Msg-Id": key})
        heard = await outcomes(stream, key, {"task.refused", "task.accepted"})
        refused = json.loads(heard["task.refused"].data) if "Content-Type" in headers and headers["Content-Type"] != "text/plain" else None
        if refused is None:
            assert image_pb2.Outcome.FromString(heard["task.refused"].data).refused.code == code
            return
        assert refused["error"]["code"] == code
        assert refused["error"]["field"] == field
        assert refused["reference"] == key

    run(test)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        (JSON | {"Authorization": "Bearer ink_dev-0000000000_nonsense"}, "Authorization"),
        (JSON, None),
    ],
)
def test_a_message_without_a_key_of_its_tenant_is_refused_apart(headers, field):
    async def test(stream):
        key = str(uuid.uuid4())
        await stream.publish(SUBJECT, b"{}", headers=headers | {"Nats-Msg-Id": key})
        error = (await unproven(stream, key))["error"]
        assert (error["code"], error["field"]) == ("unauthenticated", field)

    run(test)


def test_bytes_that_are_no_message_are_refused_in_protobuf():
    async def test(stream):
        key = str(uuid.uuid4())
        await stream.publish(SUBJECT, b"\xff\xff\xff", headers=AUTHORIZATION | {"Nats-Msg-Id": key})
        heard = await outcomes(stream, key, {"task.refused"})
        assert image_pb2.Outcome.FromString(heard["task.refused"].data).refused.code == "invalid_argument"

    run(test)


def test_another_tenants_subject_is_refused():
    async def test(stream):
        key = str(uuid.uuid4())
        payload = json.dumps(PICTURE).encode()
        await stream.publish("inkstone.intake.somebody-else", payload, headers=AUTHORIZATION | JSON | {"Nats-Msg-Id": key})
        told = await stream.subscribe("inkstone.outcome.somebody-else.*", ordered_consumer=True)
        refused = json.loads((await told.next_msg(timeout=20)).data)
        assert refused["error"]["code"] == "permission_denied"

    run(test)


def test_a_wrong_signature_is_refused_and_a_body_that_was_swapped():
    """Signature v2 as docs/API.md has it. The secret of a key is shown once, so a wrong one is what there is here; right ones are
    tested in tests/e2e/intake.rs."""

    def signed(payload: bytes) -> dict[str, str]:
        at, nonce = str(int(time.time())), secrets.token_urlsafe(18)
        digest = hashlib.sha256(payload).hexdigest()
        day = hmac.digest(b"0" * 64, b"inkstone-v2:" + time.strftime("%Y%m%d", time.gmtime()).encode(), "sha256")
        lines = ["INKSTONE-HMAC-SHA256-V2", at, nonce, "PUBLISH", SUBJECT, "", digest]
        signature = hmac.new(day, "\n".join(lines).encode(), "sha256").hexdigest()
        app_key = os.environ["INKSTONE_KEY"].split("_")[1]
        return {
            "X-App-Key": app_key,
            "X-Timestamp": at,
            "X-Nonce": nonce,
            "X-Content-SHA256": digest,
            "X-Signature": signature,
        }

    async def test(stream):
        payload = json.dumps(PICTURE).encode()
        for body, field in ((payload, "X-Signature"), (payload + b" ", "X-Content-SHA256")):
            key = str(uuid.uuid4())
            await stream.publish(SUBJECT, body, headers=signed(payload) | JSON | {"Nats-Msg-Id": key})
            error = (await unproven(stream, key))["error"]
            assert (error["code"], error["field"]) == ("unauthenticated", field)

    run(test)


def test_a_message_over_the_limit_fails_where_it_is_published():
    async def test(stream):
        with pytest.raises(APIError) as refused:
            await stream.publish(SUBJECT, b"x" * (256 * 1024), headers=AUTHORIZATION)
        assert "exceeds maximum" in refused.value.description

    run(test)
