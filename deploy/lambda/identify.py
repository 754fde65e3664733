"""Function: what an image shows, in a sentence that is spoken, too.

It takes {"base64Image", "imageName"}, stores the picture as raw-image/NAME.png and the speech as audio/NAME.mp3, and
answers the sentence.
"""

import functools

import boto3
import gateway
import model

VOICE = "Joanna"


@functools.cache
def speech():
    return boto3.client("polly")


@gateway.handles
def handler(event: dict) -> str:
    fields = gateway.fields(event)
    name = gateway.name(fields.get("imageName"), "imageName")
    picture = gateway.png(gateway.decoded(fields.get("base64Image"), "base64Image"), "base64Image")
    model.put(f"raw-image/{name}.png", picture, "image/png")
    answer = model.ask("classify", image_bytes=[picture])
    label, score = answer["label"][0].decode(), float(answer["probability"][0].max())
    sentence = f"The image is identified as {label} (with score = {score:.5f})"
    spoken = speech().synthesize_speech(Text=sentence, OutputFormat="mp3", VoiceId=VOICE)["AudioStream"].read()
    if not spoken:
        raise RuntimeError("the speech service answered no speech")
    model.put(f"audio/{name}.mp3", spoken, "audio/mpeg")
    return sentence
