-- PostgreSQL's image makes the database mlflow, and then runs this once.
CREATE DATABASE prefect;
