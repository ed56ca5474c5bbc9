package policy_test

import (
	"fmt"
	"log"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/tensor"
)

// A prompt of 64 tokens is cut down to 16 keys a head in the mean, more for heads
// whose last queries look at many keys.
func Example() {
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	const layers, kvHeads = 1, 2
	cache, err := kvcache.NewHeads(backend, kvcache.Config{
		Layers: layers, Pages: 64, PageSize: 4, KVHeads: kvHeads, HeadDim: 8, ValueDim: 8, DType: tensor.BF16,
	})
	if err != nil {
		log.Fatal(err)
	}
	id, heads := cache.NewSequence(), policy.NewSequence(layers, kvHeads)
	slots, err := cache.Extend([]kvcache.ID{id}, []int{64}, nil)
	if err != nil {
		log.Fatal(err)
	}
	heads.Extend(64)
	rows := tensor.New(tensor.F32, 64, kvHeads, 8)
	if err := cache.Append(0, slots, rows, rows); err != nil {
		log.Fatal(err)
	}

	// Weights of the last 4 queries, by ColumnStats: head 0 looks at one key, head 1
	// at twenty.
	for head, keys := range []int{1, 20} {
		recent := make([]float32, 64)
		for j := range keys {
			recent[10+j] = 4 / float32(keys)
		}
		if err := heads.Head(0, head).Observe(policy.Observation{RecentQueries: 4, Recent: recent}); err != nil {
			log.Fatal(err)
		}
	}

	fmt.Println("pages:", cache.Stats().Used)
	plans, err := policy.AdaKV(4).Plan(heads, 16)
	if err == nil {
		err = cache.Apply([]kvcache.ID{id}, plans)
	}
	if err == nil {
		err = heads.Applied(plans)
	}
	if err != nil {
		log.Fatal(err)
	}
	for head := range kvHeads {
		n, err := cache.Len(id, 0, head)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("head %d: %d keys\n", head, n)
	}
	fmt.Println("pages:", cache.Stats().Used)

	// Output:
	// pages: 32
	// head 0: 9 keys
	// head 1: 23 keys
	// pages: 9
}
