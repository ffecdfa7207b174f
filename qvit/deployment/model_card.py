"""The README.md of a checkpoint: what it is, where it came from, how to use it."""

from typing import Any

from jinja2 import Environment, StrictUndefined

_CARD = """\
---
library_name: qvit
tags: [image-classification, quantized, vision-transformer]
{%- if source.hub_id %}
base_model: {{ source.hub_id }}
{%- endif %}
{%- if license %}
license: {{ license }}
{%- endif %}
---

# {{ source.timm_name }}, {{ scheme }}

A Vision Transformer quantized by qvit {{ version }}
{%- if recipe.synthesis and not recipe.synthesis.data_free %} on {{ recipe.synthesis.images_read }} images
{%- if recipe.synthesis.leaves %} and {{ recipe.synthesis.leaves }} pictures of shapes{% endif %}:
{%- else %} **without any data**:
{%- endif %}
weights {{ recipe.weights.bits }} bits, activations {{ recipe.activations.bits }} bits, both attention products
{{ recipe.attention.bits }} bits{% if layers %}, and bits of their own for these:
{% for pattern, bits in layers.items() %}
- `{{ pattern }}`: {{ bits }}
{%- endfor %}

{% else %}. {% endif %}Every Linear, the patch embedding and the head are integers.
{%- if not source.pretrained %}

**The float weights were random**: this model is for timing, and classifies nothing.
{%- endif %}

```python
from qvit import QuantViT

model = QuantViT.from_pretrained("path/of/this/folder")
logits = model(model.transform()(image)[None])
```

| | |
| --- | --- |
| float model | {{ source.timm_name }} |
| licence of its weights | {{ license or "unknown" }} |
| input | {{ input_size | join(" x ") }} |
| model.safetensors | {{ "%.2f" | format(bytes / 1e6) }} MB, {{ "%.1f" | format(100 * ratio) }} % of the fp32 weights |
| recipe | `{{ recipe.name }}`, seed {{ recipe.seed }}: recipe.yaml |
{%- if recipe.distillation %}
| training | {{ recipe.distillation.method }}, on images that were made from the float weights: run.json |
{%- endif %}
{%- if non_commercial %}

The licence of the float weights does not allow commercial use, and holds for this model too.
{%- endif %}
"""


def model_card(**values: Any) -> str:
    """The card's text. A value that the template needs and does not get raises jinja2.UndefinedError."""
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(_CARD).render(**values)
