"""What schemathesis has to know of the platform that it runs against, beyond its OpenAPI document."""

import os
import urllib.error
import urllib.request
import uuid

import schemathesis

URL = os.environ["INKSTONE_URL"]
KEY = {"Authorization": "Bearer " + os.environ["INKSTONE_KEY"]}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def one_of(*words):
    return {"type": ["string", "null"], "enum": [None, *words]}


# The model's own limits, which the document leaves open because every model has others: those of the demo model.
STEPS = {"type": ["integer", "null"], "minimum": 0, "maximum": 100}
SCALE = {"type": ["number", "null"], "minimum": 0, "maximum": 20}
MODEL = one_of("inkstone-demo", "t2i-basic")
SIDE = {"type": ["integer", "null"], "enum": [None, 0, 64, 96, 128]}
KNOBS = {"steps": STEPS, "guidance_scale": SCALE}
# More than the key may send in a second is never let through at once.
BATCH = 20


@schemathesis.hook
def before_load_schema(context, document):
    parts = document["components"]["schemas"]
    for name in ("Submission", "KeyedSubmission"):
        fields = parts[name]["properties"]
        fields.update(KNOBS, model=MODEL, width=SIDE, height=SIDE)
        # Nobody is to be told of these tasks, so that there is no rule for who is.
        del fields["webhook"], fields["webhook_url"], parts[name]["allOf"]
    parts["Batch"]["properties"]["tasks"]["maxItems"] = BATCH
    # What needs a picture beside it.
    for name in ("DashScopeSynthesis", "DashScopeMessage"):
        fields = parts[name]["properties"]
        fields["model"] = MODEL
        fields["parameters"]["properties"].update(KNOBS, size=one_of("64*128", "128*128"))
        for field in ("ref_mode", "ref_strength", "strength"):
            del fields["parameters"]["properties"][field]
        # The last of these has two places, and the first that has it counts.
        for field in ("ref_img", "base_image_url", "images", "function", "negative_prompt"):
            fields["input"]["properties"].pop(field, None)
        # The rules are about these, and about what a list in a message may hold.
        del parts[name]["allOf"]
    content = parts["DashScopeMessage"]["properties"]["input"]["properties"]["messages"]["items"]["properties"]["content"]
    content["oneOf"].pop()
    # Streams take one picture and no URL: the clients' own tests have them.
    for name in ("ImageGeneration", "ImageEdit", "ImageEditByReference"):
        fields = parts[name]["properties"]
        fields.update(KNOBS, model=MODEL, size=one_of("auto", "64x128", "128x128"))
        del fields["stream"], fields["partial_images"], parts[name]["allOf"]
    # A file, not a list of files: a form has the field once or several times.
    parts["ImageEdit"]["properties"]["image"] = {"type": "string", "format": "binary"}
    named = {"type": "string", "enum": [PICTURE]}
    fields = parts["ImageEditByReference"]["properties"]
    fields["images"]["items"]["properties"]["image_url"] = named
    fields["mask"]["properties"]["image_url"] = named
    # One of the two has to be there: as the document says it, but in a form that requests are made from sooner.
    del parts["Feedback"]["allOf"]
    parts["Feedback"]["anyOf"] = [
        {"required": ["rating"], "properties": {"rating": {"type": "integer"}}},
        {"required": ["verdict"], "properties": {"verdict": {"type": "string"}}},
    ]
    # Requests are made far too seldom in which each tensor is there once and goes with its name.
    for name in ("InferRequest", "InputTensor"):
        del parts[name]["allOf"]
    parts["TokenWish"]["properties"]["lifetime_seconds"].update(minimum=60, maximum=900)
    for path, item in document["paths"].items():
        for operation in item.values():
            # A token is one that a page gave, and what is asked for has to be in order and not too far away.
            parameters = operation.get("parameters", [])
            parameters[:] = [p for p in parameters if p["name"] not in ("page_token", "created_before", "page_no")]
            for parameter in parameters:
                if parameter["name"] == "model" and parameter["in"] == "path":
                    parameter["schema"]["enum"] = ["inkstone-demo"]
                if parameter["name"] == "version":
                    parameter["schema"]["enum"] = ["1"]
            if path.endswith("/infer"):
                # A body of two parts, which a schema does not describe.
                del operation["requestBody"]["content"]["application/octet-stream"]
                names = [parameter["name"] for parameter in operation["parameters"]]
                del operation["parameters"][names.index("Inference-Header-Content-Length")]


@schemathesis.hook
def before_call(context, case, kwargs):
    # A key that is good for one request is good for no other: each gets one of its own.
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.isascii() and key.isalnum() and len(key) < 200:
        case.headers["Idempotency-Key"] = f"{key}-{uuid.uuid4()}"


def ids(answer):
    """The tasks that an answer says were made."""
    if answer.get("phase") == "queued":
        yield answer["id"]
    for result in answer.get("results") or []:
        yield from ids(result.get("task") or {})
    output = answer.get("output") or {}
    if output.get("task_status") == "PENDING":
        yield output["task_id"]


@schemathesis.hook
def after_call(context, case, response):
    # Nobody waits for these pictures, and others do.
    if case.operation.method.lower() != "post" or response.status_code not in (200, 202):
        return
    try:
        answer = response.json()
    except ValueError:
        return
    for task in ids(answer) if isinstance(answer, dict) else ():
        request = urllib.request.Request(f"{URL}/v1/tasks/{task}", headers=KEY, method="DELETE")
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            # Then it is drawn; nothing hangs on it.
            if error.code != 429:
                raise
