package kvcache_test

import (
	"errors"
	"fmt"
	"log"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// A prompt is stored once and continued twice; then one continuation is rolled
// back, as after a rejected speculation.
func Example() {
	backend := &hostBackend{} // in a program: one of package backend
	config := kvcache.Config{
		Layers: 2, Pages: 8, PageSize: 4, KVHeads: 2, HeadDim: 8, ValueDim: 8,
		DType: tensor.BF16, KeyStorage: kernel.PreRoPE,
	}
	cache, err := kvcache.New(backend, config)
	if err != nil {
		log.Fatal(err)
	}

	// The prompt: 6 tokens.
	prompt := cache.NewSequence()
	slots, err := cache.Extend([]kvcache.ID{prompt}, []int{6}, nil)
	if err != nil {
		log.Fatal(err)
	}
	store(cache, slots)

	// A second continuation shares its pages.
	fork, err := cache.Fork(prompt)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("shared pages:", cache.Stats().Shared)

	// One step: a token for the first, three for the second. The half-filled
	// page is copied for one of them.
	ids := []kvcache.ID{prompt, fork}
	view := cache.Sequences(ids...)
	if slots, err = cache.Extend(ids, []int{1, 3}, slots[:0]); err != nil {
		log.Fatal(err)
	}
	store(cache, slots)

	var batch kernel.Batch
	if err := view.LowerKV(&batch); err != nil {
		log.Fatal(err)
	}
	fmt.Println("slots:", slots)
	fmt.Println("lengths:", batch.SeqLens, "pages:", batch.Pages.Indptr, batch.Pages.Indices)

	// Two of the three tokens were wrong.
	if err := cache.Truncate(fork, 7); err != nil {
		log.Fatal(err)
	}
	fmt.Println("pages used:", cache.Stats().Used)

	// A batch that does not fit changes nothing.
	var full *kvcache.OutOfPagesError
	_, err = cache.Extend(ids, []int{100, 1}, nil)
	fmt.Println(errors.As(err, &full), err)

	// Output:
	// shared pages: 2
	// slots: [10 6 7 12]
	// lengths: [7 9] pages: [0 2 5] [0 2 0 1 3]
	// pages used: 3
	// true kvcache: 25 pages needed, 5 free
}

// store puts rows in the slots of all layers, as a model would.
func store(cache *kvcache.Cache, slots []int32) {
	c := cache.Config()
	n, heads := int64(len(slots)), int64(c.KVHeads)
	for layer := range c.Layers {
		key := tensor.New(tensor.F32, n, heads, int64(c.HeadDim))
		value := tensor.New(tensor.F32, n, heads, int64(c.ValueDim))
		if err := cache.Append(layer, slots, key, value); err != nil {
			log.Fatal(err)
		}
	}
}
