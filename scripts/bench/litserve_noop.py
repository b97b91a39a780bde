"""A request for nothing, in litserve: POST /predict."""

import sys

import litserve


class Noop(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, request):
        return {"ok": True}


if __name__ == "__main__":
    server = litserve.LitServer(Noop(), accelerator="cpu")
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
