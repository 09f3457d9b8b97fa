"""A model behind OpenAI's HTTP interface: answers and images of many clients at a time."""
