# For CPUs:         docker build -t ddpm-lab .
#                   docker run --rm -v ddpm-runs:/home/lab/runs ddpm-lab ddpm-train
# For NVIDIA GPUs:  docker build -t ddpm-lab:gpu --build-arg TORCH_BACKEND=cu130 .
#                   docker run --rm --gpus all --ipc=host -v ddpm-runs:/home/lab/runs ddpm-lab:gpu ddpm-train trainer=gpu
FROM python:3.12-slim

# A backend of `uv pip install --torch-backend`: cpu, cu128, cu130, rocm6.4, ...
ARG TORCH_BACKEND=cpu
ENV UV_TORCH_BACKEND=$TORCH_BACKEND UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 PYTHONUNBUFFERED=1

RUN pip install --no-cache-dir uv
WORKDIR /opt/ddpm-lab
# The requirements are a layer of their own: changes to the code keep it.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --constraint constraints.txt --requirement pyproject.toml
COPY README.md LICENSE ./
COPY configs configs
COPY src src
RUN uv pip install --no-deps .

RUN useradd --create-home lab && mkdir /home/lab/runs && chown lab /home/lab/runs
USER lab
WORKDIR /home/lab
CMD ["ddpm-train", "--help"]
