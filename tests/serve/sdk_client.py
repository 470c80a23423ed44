"""Asks for everything that OpenAI's client can and prints what came back as JSON, with any version on the path.

python sdk_client.py URL KEY PICTURE CLIP
"""

from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")  # every call of 3.x says that OpenAI's own service is gone

import openai  # noqa: E402

url, key, picture, clip = sys.argv[1:]
said: dict = {"version": openai.__version__}
client = openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)
video = client.videos.create_and_poll(prompt="a red ball", seconds="1", size="64x48", model="sora-2")
said["video"] = video.to_dict()
said["files"] = {
    variant: client.videos.download_content(video.id, variant=variant).read()[:12].hex()
    for variant in ("video", "thumbnail", "spritesheet")
}
with open(picture, "rb") as file:
    said["shown"] = client.videos.create_and_poll(prompt="a red ball", input_reference=file).to_dict()
tuned = {"seed": 7, "num_frames": 9, "num_inference_steps": 3}
said["tuned"] = client.videos.create_and_poll(prompt="a red ball", extra_body=tuned).to_dict()
said["remix"] = client.videos.poll(client.videos.remix(video.id, prompt="a blue ball").id).to_dict()
if hasattr(client.videos, "edit"):
    with open(clip, "rb") as file:
        said["edit"] = client.videos.poll(client.videos.edit(prompt="a green ball", video=file).id).to_dict()
    named = {"video": openai.omit, "extra_body": {"video": {"id": video.id}}}
    said["extend"] = client.videos.poll(client.videos.extend(prompt="on", seconds="2", **named).id).to_dict()
    with open(clip, "rb") as file:
        character = client.videos.create_character(name="Bob", video=file)
    said["character"] = [character.to_dict(), client.videos.get_character(character.id).to_dict()]
said["pages"] = [one.id for one in client.videos.list(limit=2)]
said["first"] = client.videos.list(limit=1, order="asc").to_dict()
said["deleted"] = client.videos.delete(video.id).to_dict()
stranger = openai.OpenAI(api_key="not-a-key-at-all", base_url=f"{url}/v1", max_retries=0)
calls = {
    "gone": lambda: client.videos.retrieve(video.id),
    "gone_content": lambda: client.videos.download_content(video.id),
    "empty": lambda: client.videos.create(prompt=""),
    "size": lambda: client.videos.create(prompt="a red ball", size="5x64"),
    "seconds": lambda: client.videos.create(prompt="a red ball", seconds="5000"),
    "model": lambda: client.videos.create(prompt="a red ball", model="other"),
    "picture": lambda: client.videos.create(prompt="a red ball", input_reference=b"no picture"),
    "hostile": lambda: client.videos.retrieve("../../etc/passwd"),
    "key": lambda: stranger.videos.list(),
}
said["errors"] = {}
for name, call in calls.items():
    try:
        call()
    except openai.APIStatusError as error:
        about = [type(error).__name__, error.status_code, getattr(error, "param", None), bool(error.request_id)]
        said["errors"][name] = about
print(json.dumps(said, default=str))
