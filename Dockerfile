# The same image for CPUs, GPUs and TPUs: docker build --build-arg EXTRAS=cuda,report -t rlhf_jax .
FROM python:3.12-slim
ARG EXTRAS=report,tensorboard
WORKDIR /rlhf_jax
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
COPY . .
RUN python -m pip install --no-cache-dir -c constraints.txt -e ".[${EXTRAS}]"
ENV PYTHONUNBUFFERED=1
CMD ["python", "-m", "experiments.instructgpt", "--config", "configs/quickstart.py"]
