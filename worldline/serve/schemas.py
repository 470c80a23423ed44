"""What may be asked for and what is answered: OpenAI's names, and beside them those of what only Worldline does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, WithJsonSchema

from worldline.generate.request import MAX_SEED, MAX_STEPS
from worldline.serve.bodies import Upload

SECONDS = r"^\d{1,4}(\.\d{1,3})?$"
SIZE = r"^\d{1,5}x\d{1,5}$"
MAX_URL = 20_971_520  # characters of a data URL
File = Annotated[InstanceOf[Upload], WithJsonSchema({"type": "string", "format": "binary"})]
Strength = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="0 keeps the clip, 1 forgets it")]
Length = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Picture(Body):
    """A picture by its address: a base64 data URL, or a web address where the server fetches those."""

    image_url: Annotated[str, Field(max_length=MAX_URL)] | None = None
    file_id: Annotated[str, Field(max_length=200)] | None = None


class Clip(Body):
    """A finished video, or a character, by its id."""

    id: Annotated[str, Field(min_length=1, max_length=200)]


class Card(Body):
    """What is shown from second `at` on; `cut` begins a new shot."""

    at: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0
    text: Annotated[str, Field(max_length=32_000)] = ""
    image: File | Picture | None = None
    cut: bool = False


class Drawn(Body):
    """What all calls share."""

    prompt: Annotated[str, Field(min_length=1, max_length=32_000, description="what the video shows")]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="chosen by chance unless given")] | None = None
    negative_prompt: Annotated[str, Field(max_length=32_000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None


class Create(Drawn):
    """POST /videos. A picture to begin with, one to end with, cards to tell, or words alone."""

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    seconds: Annotated[str, Field(pattern=SECONDS, description="the model's own length unless given")] | None = None
    size: Annotated[str, Field(pattern=SIZE, description="WIDTHxHEIGHT; the model's own unless given")] | None = None
    input_reference: File | Picture | None = None
    last_reference: File | Picture | None = None
    fps: Annotated[float, Field(ge=0.1, le=240, allow_inf_nan=False)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    loop: bool = False
    rewrite: Annotated[bool, Field(description="draw the prompt as a caption of the model's kind")] = False
    storyboard: Annotated[list[Card], Field(min_length=1, max_length=100)] | None = None
    characters: Annotated[list[Clip], Field(max_length=20)] | None = None


class Remix(Drawn):
    """POST /videos/{id}/remix."""

    strength: Strength = 0.7


class Rewrite(Body):
    """POST /videos/rewrites."""

    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]


class Extend(Drawn):
    """POST /videos/extensions: `seconds` are added at the end, `backward` before the beginning."""

    seconds: Annotated[str, Field(pattern=SECONDS)]
    video: File | Clip
    backward: Length = 0


class Edit(Drawn):
    """POST /videos/edits. What `edit` does with the video: remix it; lead from its end back to its beginning (loop);
    turn it into a `second` (blend); `keep` stretches of it (recut); paint what is white in a `mask` (inpaint); widen it
    to `size` (outpaint)."""

    video: File | Clip
    edit: Literal["remix", "loop", "blend", "recut", "inpaint", "outpaint"] = "remix"
    strength: Strength | None = None
    seconds: Annotated[str, Field(pattern=SECONDS, description="of a loop's or a blend's transition")] | None = None
    second: File | Clip | None = None
    keep: Annotated[list[Annotated[list[Length], Field(min_length=2, max_length=2)]], Field(max_length=100)] | None = (
        None
    )
    join: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] | None = None
    mask: File | Picture | None = None
    size: Annotated[str, Field(pattern=SIZE)] | None = None


class NewCharacter(Body):
    """POST /videos/characters: a clip with a name."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    video: File


# ---- answers -----------------------------------------------------------------------------------


class Failure(BaseModel):
    code: str
    message: str


class Details(BaseModel):
    """What the contract has no word for."""

    edit: str
    seed: int
    step: int
    steps: int
    seconds_left: float | None
    width: int
    height: int
    frames: int
    fps: float
    made_from: list[str]
    rewritten_from: str | None


class Video(BaseModel):
    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    size: str
    seconds: str
    prompt: str | None
    remixed_from_video_id: str | None
    error: Failure | None
    worldline: Details


class VideoPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Character(BaseModel):
    id: str
    name: str
    created_at: int


class Rewritten(BaseModel):
    """`prompt` is what was made of `rewritten_from`, the same where nothing could be added: `note` then says why."""

    object: Literal["video.rewrite"] = "video.rewrite"
    prompt: str
    rewritten_from: str
    note: str


class Shape(BaseModel):
    """A picture's proportions and, with them, the size nearest to the model's own."""

    aspect: str
    size: str


class Most(BaseModel):
    """What this server takes at most: pixels of a frame, seconds of a video, characters of a prompt."""

    pixels: int
    seconds: float
    prompt: int


class ModelCard(BaseModel):
    """`step`: frames between two lengths that cost differently; `side`: the same in pixels. `pictures`: what the model
    cannot do without, 1: the first, 2: the first and the last. `examples`: prompts in words that it was taught."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "worldline"
    defaults: dict[str, Any]
    limits: Most
    shapes: list[Shape]
    step: int
    side: int
    pictures: int
    examples: list[str]


class ModelPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody
