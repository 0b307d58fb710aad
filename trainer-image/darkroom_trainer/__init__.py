"""What runs in the pod: fetch, inspect, train, publish. Imports the API; never kopf, never kubernetes."""
