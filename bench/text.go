package main

import (
	"context"
	"fmt"

	"github.com/longctx/longctx/bench/internal/atomicfile"
	"github.com/longctx/longctx/bench/internal/text"
)

// How the text that comes with bench is chosen.
const (
	textPerFolder = 200_000 // bytes of each held-out folder
	textMaxShared = 0.2     // share of a file's lines that training files may have too
	textMaxSize   = 300_000 // bytes compressed
)

func makeText(_ context.Context, std streams, args []string) error {
	f := newFlags(std, "text", "Makes the text that extrapolate judges by, from the folders of the standard\nlibrary that models are not trained on.")
	root := f.String("goroot", "", "`folder` of Go (default: that of the go command)")
	out := f.String("out", "bench/assets/heldout.txt.gz", "`file` to write")
	if err := parse(f, args); err != nil {
		return err
	}
	if *root == "" {
		var err error
		if *root, err = text.Goroot(); err != nil {
			return err
		}
	}
	held, err := text.Sources(*root, true)
	if err != nil {
		return err
	}
	training, err := text.Sources(*root, false)
	if err != nil {
		return err
	}
	chosen := text.Choose(held, training, textPerFolder, textMaxShared)
	data := text.Join(chosen)
	z, err := text.Compress(data)
	if err != nil {
		return err
	}
	if len(z) > textMaxSize {
		return fmt.Errorf("text: %d bytes compressed, want at most %d", len(z), textMaxSize)
	}
	if err := atomicfile.Write(*out, z); err != nil {
		return err
	}
	for _, s := range chosen {
		fmt.Fprintln(std.out, s.Name)
	}
	fmt.Fprintf(std.out, "%d files, %d bytes, compressed %d: %s\n", len(chosen), len(data), len(z), *out)
	return nil
}
