"""The image autoencoder with layers in time: images stay as they are, streams equal wholes, only time is trained."""

from __future__ import annotations

import pytest
import torch

from worldline.vae.codec import History
from worldline.vae.image import ImageVAE, ImageVAEConfig

CONFIG = ImageVAEConfig(latent_channels=4, widths=(8, 16), blocks=1, groups=4)


@pytest.fixture
def trained() -> ImageVAE:
    """Its layers in time do something."""
    torch.manual_seed(0)
    vae = ImageVAE(CONFIG)
    for layer in vae.decoder.time:
        torch.nn.init.normal_(layer.out.weight, std=0.3)
    return vae.eval()


def test_images_still_videos_and_first_frames_know_no_time(trained: ImageVAE) -> None:
    plain = ImageVAE(CONFIG)
    plain.load_state_dict(trained.state_dict())
    plain.init_time()
    z = torch.randn(2, 4, 3, 4, 5)
    with torch.no_grad():
        assert torch.equal(trained.decode(z[:, :, :1]), plain.decode(z[:, :, :1]))
        still = z[:, :, :1].expand(-1, -1, 3, -1, -1)
        torch.testing.assert_close(trained.decode(still), plain.decode(still))
        moving = trained.decode(z), plain.decode(z)
    torch.testing.assert_close(moving[0][:, :, :1], moving[1][:, :, :1])
    assert (moving[0] - moving[1])[:, :, 1:].abs().max() > 1e-2


@pytest.mark.parametrize("cuts", [(1, 4), (1, 1, 3), (3, 2), (2, 1, 1, 1)])
def test_a_stream_is_the_whole(trained: ImageVAE, cuts: tuple[int, ...]) -> None:
    z, history = torch.randn(1, 4, 5, 4, 4), History()
    with torch.no_grad():
        whole = trained.decode(z)
        parts = [trained.decode_chunk(piece, history) for piece in z.split(list(cuts), dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)


def test_any_size_and_length(trained: ImageVAE) -> None:
    x = torch.rand(1, 3, 2, 9, 11) * 2 - 1
    with torch.no_grad():
        latents = trained.encode(x).mean
        assert latents.shape == (1, 4, 2, 5, 6)
        assert trained.decode(latents, (2, 9, 11)).shape == x.shape


def test_only_the_layers_in_time_learn(trained: ImageVAE) -> None:
    trained.train_time_only()
    names = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert names
    assert all(name.startswith("decoder.time.") for name in names)
