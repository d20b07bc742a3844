# afterstroke: docker run --rm --gpus all -v BIDS:/bids:ro -v OUT:/out IMAGE /bids /out participant
# Everything a run needs is inside: models, brain extraction weights, templates. The image runs read-only, as any
# user, without network.
FROM debian:bookworm-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates libgomp1 \
 && rm -rf /var/lib/apt/lists/*

# the dependencies first: they change seldom, and they are most of the image
WORKDIR /opt/afterstroke
COPY pyproject.toml requirements.lock version ./
RUN mkdir bids_app && touch bids_app/__init__.py README.md \
 && python3 -m venv venv \
 && venv/bin/pip install --no-cache-dir --disable-pip-version-check --constraint requirements.lock . \
 && rm -rf bids_app build

COPY bids_app bids_app
COPY run.py README.md LICENSE ./
# what is run is what is installed, and it is there once
RUN venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall . \
 && rm -rf build bids_app \
 && venv/bin/python -I run.py --version

# nothing of the host's Python, home or user leaks in: Apptainer mounts the home folder and hands on variables, and
# -I looks at neither PYTHONPATH nor packages in the home folder
ENV PATH=/opt/afterstroke/venv/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    AFTERSTROKE_IMAGE=afterstroke \
    LANG=C.UTF-8
WORKDIR /tmp
ENTRYPOINT ["/opt/afterstroke/venv/bin/python", "-I", "-u", "/opt/afterstroke/run.py"]
