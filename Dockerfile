# The one image of every Airflow service in docker-compose.yaml, CPU and GPU alike: one lock file, so every component
# runs the versions the tests ran. Its price is size: torch's wheel from the public index brings CUDA to services that
# never use it, and requirements.txt also holds what only tests need.
#
# Airflow's official image, slim: the full one adds some thirty providers, whose pins our lock would overturn.
FROM apache/airflow:slim-3.3.2-python3.11

COPY requirements.txt /opt/airflow/requirements.txt
# `pip check`: nothing the base brought may be left broken by our versions. Runs as the image's own user, airflow.
RUN pip install --no-cache-dir --requirement /opt/airflow/requirements.txt && pip check

# Owned by root, so that no task can change the code. `python -m glm4v_ops` works in the image's working folder;
# recipes are found beside the package.
COPY glm4v_ops /opt/airflow/glm4v_ops
COPY recipes /opt/airflow/recipes
COPY plugins /opt/airflow/plugins
COPY dags /opt/airflow/dags
ENV PYTHONPATH=/opt/airflow

# Where checkpoints of the model hub are kept: a volume mounted here takes over this folder's owner.
ENV HF_HOME=/opt/airflow/models
RUN mkdir -p /opt/airflow/models
