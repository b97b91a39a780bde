"""A request for nothing, in mosec: POST /inference."""

from mosec import Server, Worker


class Noop(Worker):
    def forward(self, data):
        return {"ok": True}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Noop)
    server.run()
