"""The OpenAI package against a running platform: INKSTONE_URL and INKSTONE_KEY name it."""

import base64
import io
import os
import urllib.request

import openai
import pytest
from PIL import Image

PROMPT = "a 3d cat on a blue background"
OURS = {"steps": 6, "seed": 7}


@pytest.fixture(scope="module")
def client() -> openai.OpenAI:
    url = os.environ["INKSTONE_URL"] + "/v1"
    return openai.OpenAI(base_url=url, api_key=os.environ["INKSTONE_KEY"], max_retries=0)


def picture(b64: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


def test_a_picture_is_generated_with_the_parameters_the_package_knows(client):
    answer = client.images.generate(
        model="inkstone-demo", prompt=PROMPT, n=2, size="128x128", response_format="b64_json", extra_body=OURS
    )
    assert len(answer.data) == 2
    first, second = (picture(item.b64_json) for item in answer.data)
    assert first.size == second.size == (128, 128)
    assert first.tobytes() != second.tobytes()
    # The corner is background, and it is blue.
    red, _, blue = first.convert("RGB").getpixel((3, 3))
    assert blue > red + 60
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_only_a_prompt_is_enough(client):
    answer = client.images.generate(prompt="a rocket, flat style")
    assert picture(answer.data[0].b64_json).format == "PNG"


def test_the_same_seed_gives_the_same_bytes(client):
    draw = lambda: client.images.generate(prompt=PROMPT, extra_body=OURS).data[0].b64_json  # noqa: E731
    assert draw() == draw()


def test_a_url_is_served_without_a_key(client):
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body=OURS)
    with urllib.request.urlopen(answer.data[0].url) as served:
        assert served.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(served.read())).size == (128, 128)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_other_file_formats_are_written(client, name):
    answer = client.images.generate(prompt=PROMPT, output_format=name, extra_body=OURS)
    assert picture(answer.data[0].b64_json).format == name.upper()


def test_partial_images_are_streamed_and_the_last_event_is_the_picture(client):
    events = list(
        client.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body={"steps": 30, "seed": 7}
        )
    )
    *partial, last = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert 1 <= len(partial) <= 2
    assert [event.partial_image_index for event in partial] == sorted(e.partial_image_index for e in partial)
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens
    whole = client.images.generate(prompt=PROMPT, extra_body={"steps": 30, "seed": 7})
    assert last.b64_json == whole.data[0].b64_json
    assert all(picture(event.b64_json).size == (128, 128) for event in partial)
    assert all(event.b64_json != last.b64_json for event in partial)


def test_models_are_listed(client):
    assert "inkstone-demo" in [model.id for model in client.models.list()]


def test_a_model_that_is_not_there_is_named_as_the_parameter(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("dall-e-9")
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": "x" * 4097}, openai.BadRequestError, "prompt"),
        ({"size": "100x100"}, openai.BadRequestError, "size"),
        ({"size": "1024x1024"}, openai.BadRequestError, "size"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"model": "dall-e-9"}, openai.NotFoundError, "model"),
        ({"background": "transparent"}, openai.BadRequestError, "background"),
        ({"extra_body": {"steps": 100_000}}, openai.BadRequestError, "steps"),
        ({"extra_body": {"scheduler": "plms"}}, openai.BadRequestError, "scheduler"),
        ({"extra_body": {"prompt_syntax": "compel"}}, openai.BadRequestError, "prompt_syntax"),
    ],
)
def test_bad_input_raises_the_packages_own_errors_and_names_the_parameter(client, change, error, param):
    with pytest.raises(error) as raised:
        client.images.generate(**({"prompt": PROMPT} | change))
    assert raised.value.param == param


def test_a_wrong_key_is_an_authentication_error():
    url = os.environ["INKSTONE_URL"] + "/v1"
    stranger = openai.OpenAI(base_url=url, api_key="ink_dev-0000000000_nonsense", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt=PROMPT)
