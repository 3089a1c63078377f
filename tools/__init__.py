"""Set-up, headless host, demo and workflow builder. Never imported by the pack."""
