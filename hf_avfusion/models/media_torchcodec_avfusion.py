"""Whether torchcodec can decode here, as PyAV does."""

import functools
import io

import numpy as np


@functools.cache
def torchcodec_works() -> bool:
    """Whether torchcodec decodes here; found by decoding, since without FFmpeg's libraries it imports and fails later."""
    import av

    target = io.BytesIO()
    picture = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(32, 32, 3)
    with av.open(target, mode="w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = target.getvalue()
    try:
        from torchcodec.decoders import VideoDecoder

        decoded = VideoDecoder(data, seek_mode="exact")[1]
    except Exception:  # ImportError, OSError, RuntimeError: it has many ways not to work, and all mean the same
        return False
    with av.open(io.BytesIO(data)) as container:
        shown = list(container.decode(video=0))[1].to_ndarray(format="rgb24")
    return bool((decoded.permute(1, 2, 0).numpy() == shown).all())
