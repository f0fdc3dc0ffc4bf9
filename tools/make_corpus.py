import argparse, importlib, json, pathlib, sys, time
from corpus_models.entry import Corpus
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(args.folder, args.only)
    from corpus_models import torch_models
    t=time.time()
    torch_models.make(corpus)
    (args.folder / "corpus.json").write_text(json.dumps(corpus.entries, indent=1) + "\n")
    print(len(corpus.entries), time.time()-t)
main()
