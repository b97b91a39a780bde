"""The DashScope package against a running platform: INKSTONE_URL and INKSTONE_KEY name it."""

import asyncio
import io
import os
import re
import time
import urllib.request
from http import HTTPStatus

import dashscope
import pytest
from dashscope import AioMultiModalConversation, ImageSynthesis, MultiModalConversation
from dashscope.aigc.image_generation import ImageGeneration
from dashscope.aigc.image_synthesis import AioImageSynthesis
from dashscope.api_entities.aio_session import close_shared_aio_session
from dashscope.common.error import UploadFileException
from PIL import Image, ImageChops

PROMPT = "a 3d cat on a blue background"
MODEL = "inkstone-demo"
OURS = {"steps": 6, "seed": 7}
MESSAGES = [{"role": "user", "content": [{"text": PROMPT}]}]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


@pytest.fixture(scope="module", autouse=True)
def platform():
    dashscope.base_http_api_url = os.environ["INKSTONE_URL"] + "/api/v1"
    dashscope.api_key = os.environ["INKSTONE_KEY"]


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as served:
        return served.read()


def picture(url: str) -> Image.Image:
    image = Image.open(io.BytesIO(fetched(url)))
    image.load()
    return image


def content(answer) -> list[str]:
    return [part["image"] for choice in answer.output.choices for part in choice.message.content]


def test_a_synthesis_is_called_and_waited_for_by_the_package():
    answer = ImageSynthesis.call(MODEL, PROMPT, n=2, size="128*128", **OURS)
    assert answer.status_code == HTTPStatus.OK, answer
    assert answer.output.task_status == "SUCCEEDED"
    assert answer.usage.image_count == len(answer.output.results) == 2
    first, second = (picture(result.url) for result in answer.output.results)
    assert first.size == second.size == (128, 128)
    assert first.tobytes() != second.tobytes()
    red, _, blue = first.convert("RGB").getpixel((3, 3))
    assert blue > red + 60
    assert answer.output["task_metrics"] == {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}
    for name in ("submit_time", "scheduled_time", "end_time"):
        assert re.fullmatch(TIME, answer.output[name]), answer.output
    assert answer.request_id


def test_a_watermark_is_seen_in_the_corner_and_nowhere_else():
    def drawn(**more) -> Image.Image:
        answer = ImageSynthesis.call(MODEL, PROMPT, size="128*128", **OURS, **more)
        assert answer.status_code == HTTPStatus.OK, answer
        return picture(answer.output.results[0].url).convert("RGB")

    plain, without, marked = drawn(), drawn(watermark=False), drawn(watermark=True)
    assert plain.tobytes() == without.tobytes()
    left, top, right, bottom = ImageChops.difference(plain, marked).getbbox()
    assert left > 64 and top > 96 and right <= 128 and bottom <= 128


def test_a_synthesis_is_accepted_then_fetched_until_it_has_ended():
    accepted = ImageSynthesis.async_call(MODEL, PROMPT, negative_prompt="dogs", style="<3d cartoon>", **OURS)
    assert accepted.output.task_status == "PENDING"
    assert ImageSynthesis.fetch(accepted).output.task_status in ("PENDING", "RUNNING", "SUCCEEDED")
    ended = ImageSynthesis.wait(accepted)
    assert ended.output.task_id == accepted.output.task_id
    assert ended.output.task_status == "SUCCEEDED"
    assert ImageSynthesis.fetch(accepted.output.task_id).output.results == ended.output.results


def test_a_synchronous_synthesis_is_refused_in_dashscopes_words():
    answer = ImageSynthesis.sync_call(MODEL, PROMPT)
    assert (answer.status_code, answer.code) == (HTTPStatus.FORBIDDEN, "AccessDenied")
    assert answer.message.startswith("current user api does not support synchronous calls.")
    assert "X-DashScope-Async: enable" in answer.message


def test_a_message_is_answered_with_pictures():
    answer = MultiModalConversation.call(model=MODEL, messages=MESSAGES, n=2, size="128*128", **OURS)
    assert answer.status_code == HTTPStatus.OK, answer
    urls = content(answer)
    assert [picture(url).size for url in urls] == [(128, 128)] * 2
    assert answer.output.choices[0].finish_reason == "stop"
    assert answer.usage["image_count"] == 2


def test_the_image_generation_class_works_in_both_ways():
    waited = ImageGeneration.call(MODEL, messages=MESSAGES, negative_prompt="dogs", **OURS)
    assert waited.status_code == HTTPStatus.OK, waited
    accepted = ImageGeneration.async_call(MODEL, messages=MESSAGES, negative_prompt="dogs", **OURS)
    assert accepted.output.task_status == "PENDING"
    ended = ImageGeneration.wait(accepted)
    assert ended.output.task_status == "SUCCEEDED"
    assert fetched(content(waited)[0]) == fetched(content(ended)[0])


def test_every_request_form_draws_the_same_picture_from_the_same_seed():
    synthesis = ImageSynthesis.call(MODEL, PROMPT, **OURS)
    message = MultiModalConversation.call(model=MODEL, messages=MESSAGES, **OURS)
    assert fetched(synthesis.output.results[0].url) == fetched(content(message)[0])


def test_a_client_that_asks_for_a_stream_has_the_answer_in_one_piece():
    streamed = list(MultiModalConversation.call(model=MODEL, messages=MESSAGES, stream=True, **OURS))
    whole = MultiModalConversation.call(model=MODEL, messages=MESSAGES, **OURS)
    assert len(streamed) == 1
    assert fetched(content(streamed[0])[0]) == fetched(content(whole)[0])


def test_the_packages_asynchronous_classes_work_too():
    async def draw():
        synthesis = AioImageSynthesis.call(MODEL, PROMPT, **OURS)
        message = AioMultiModalConversation.call(model=MODEL, messages=MESSAGES, **OURS)
        drawn = await asyncio.gather(synthesis, message)
        long = await AioImageSynthesis.async_call(MODEL, PROMPT, n=10, steps=100)
        cancelled = await AioImageSynthesis.cancel(long)
        await close_shared_aio_session()
        return *drawn, cancelled

    synthesis, message, cancelled = asyncio.run(draw())
    assert cancelled.status_code == HTTPStatus.OK, cancelled
    assert synthesis.output.task_status == "SUCCEEDED", synthesis
    assert fetched(synthesis.output.results[0].url) == fetched(content(message)[0])


def test_a_task_is_cancelled_and_one_that_has_ended_is_not():
    long = ImageSynthesis.async_call(MODEL, PROMPT, n=10, steps=100)
    assert ImageSynthesis.cancel(long).status_code == HTTPStatus.OK
    assert ImageSynthesis.wait(long).output.task_status == "CANCELED"
    ended = ImageSynthesis.call(MODEL, PROMPT, **OURS)
    refused = ImageSynthesis.cancel(ended)
    assert (refused.status_code, refused.code) == (HTTPStatus.BAD_REQUEST, "UnsupportedOperation")


def test_a_picture_to_begin_from_is_named_by_its_url_in_each_request_form():
    first = ImageSynthesis.call(MODEL, PROMPT, **OURS).output.results[0].url
    plain = ImageSynthesis.call(MODEL, "a 3d dog", **OURS).output.results[0].url
    drawn = {"ref_strength": 0.25} | OURS
    repainted = ImageSynthesis.call(MODEL, "a 3d dog", ref_img=first, ref_mode="repaint", **drawn)
    assert repainted.output.task_status == "SUCCEEDED", repainted
    message = [{"role": "user", "content": [{"image": first}, {"text": "a 3d dog"}]}]
    talked = MultiModalConversation.call(model=MODEL, messages=message, **drawn)
    assert talked.status_code == HTTPStatus.OK, talked
    edited = ImageSynthesis.call(
        MODEL, "a 3d dog", task="image2image", function="description_edit", base_image_url=first, **drawn
    )
    assert edited.output.task_status == "SUCCEEDED", edited
    pictures = [fetched(url) for url in (repainted.output.results[0].url, content(talked)[0], edited.output.results[0].url)]
    assert pictures[0] == pictures[1] == pictures[2] != fetched(plain)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_picture_is_refused_with_the_ways_to_name_one(scheme, tmp_path):
    local = tmp_path / "cat.png"
    Image.new("RGB", (128, 128)).save(local)
    name = scheme + str(local)
    with pytest.raises(UploadFileException, match="InvalidParameter.* data: URL"):
        ImageSynthesis.call(MODEL, PROMPT, ref_img=name, **OURS)
    message = [{"role": "user", "content": [{"image": name}, {"text": PROMPT}]}]
    with pytest.raises(UploadFileException, match="InvalidParameter.* data: URL"):
        MultiModalConversation.call(model=MODEL, messages=message, **OURS)


def test_tasks_are_listed_by_status_time_and_page():
    made = {ImageSynthesis.call(MODEL, PROMPT, **OURS).output.task_id for _ in range(3)}
    soon = time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() + 8 * 3600 + 60))
    listed = ImageSynthesis.list(
        start_time="20230420000000", end_time=soon, model_name=MODEL, status="SUCCEEDED", page_size=100
    )
    assert listed.status_code == HTTPStatus.OK, listed
    assert made <= {row["task_id"] for row in listed.output["data"]}
    assert {row["status"] for row in listed.output["data"]} == {"SUCCEEDED"}
    pages = [ImageSynthesis.list(page_no=page, page_size=1).output for page in (1, 2, 3)]
    assert {page["data"][0]["task_id"] for page in pages} == made
    assert pages[0]["total"] == pages[0]["total_page"] >= 3
    assert ImageSynthesis.list(start_time=soon).output["data"] == []
    assert ImageSynthesis.list(start_time=soon, end_time="20230420000000").output["data"] == []
    assert ImageSynthesis.list(model_name="another").output["data"] == []


def test_a_task_that_is_not_there_is_unknown():
    answer = ImageSynthesis.fetch("11111111-1111-4111-8111-111111111111")
    assert (answer.status_code, answer.output.task_status) == (HTTPStatus.OK, "UNKNOWN")


@pytest.mark.parametrize(
    ("change", "status", "code", "names"),
    [
        ({"prompt": " "}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "prompt"),
        ({"prompt": "x" * 4097}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "prompt"),
        ({"size": "100*100"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "size: width"),
        ({"size": "128x128"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "size"),
        ({"n": 11}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "n must be 1 to 10"),
        ({"style": "<cubism>"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "style"),
        ({"watermark": "yes"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "watermark"),
        ({"ref_img": "http://10.0.0.1/x.png"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "ref_img"),
        ({"mask_image_url": "http://127.0.0.1/x.png"}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "mask_image_url"),
        ({"ref_strength": 0.5}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "ref_strength"),
        ({"steps": 100_000}, HTTPStatus.BAD_REQUEST, "InvalidParameter", "steps"),
        ({"model": "wanx-v9"}, HTTPStatus.NOT_FOUND, "ModelNotFound", "wanx-v9"),
        ({"api_key": "ink_dev-0000000000_nonsense"}, HTTPStatus.UNAUTHORIZED, "InvalidApiKey", ""),
    ],
)
def test_bad_input_is_answered_with_dashscopes_code_and_names_the_field(change, status, code, names):
    answer = ImageSynthesis.async_call(**({"model": MODEL, "prompt": PROMPT} | change))
    assert (answer.status_code, answer.code) == (status, code)
    assert names in answer.message
    assert answer.request_id


@pytest.mark.parametrize(
    "messages",
    [
        MESSAGES * 2,
        [{"role": "assistant", "content": [{"text": PROMPT}]}],
        [{"role": "user", "content": [{"text": PROMPT}, {"image": "http://10.0.0.1/x.png"}]}],
        [{"role": "user", "content": [{"text": PROMPT}, {"image": "https://h/1.png"}, {"image": "https://h/2.png"}]}],
    ],
)
def test_messages_that_are_not_one_text_are_refused(messages):
    answer = MultiModalConversation.call(model=MODEL, messages=messages)
    assert (answer.status_code, answer.code) == (HTTPStatus.BAD_REQUEST, "InvalidParameter")
    assert "messages" in answer.message
