package prefix_test

import (
	"fmt"
	"log"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

// Two requests begin with the same instructions; the second computes only what
// comes after them.
func Example() {
	cache, err := kvcache.New(cpu.New(cpu.Options{}), kvcache.Config{Layers: 2, Pages: 16, PageSize: 4, KVHeads: 1, HeadDim: 8, ValueDim: 8, DType: tensor.BF16})
	if err != nil {
		log.Fatal(err)
	}
	index, err := prefix.NewRadix(cache, prefix.Options{Order: prefix.LRU})
	if err != nil {
		log.Fatal(err)
	}
	instructions := []int32{7, 1, 8, 2, 8, 1, 8, 2, 8, 4}
	for _, question := range [][]int32{{3, 1, 4}, {2, 7}} {
		prompt := prefix.Prompt{Namespace: "model", Salt: "tenant", Tokens: append(instructions[:10:10], question...)}
		lease, err := index.Match(&prompt)
		if err != nil {
			log.Fatal(err)
		}
		id, err := lease.Start()
		if err != nil {
			log.Fatal(err)
		}
		rest := prompt.Tokens[lease.Tokens():]
		slots, err := prefix.Extend(cache, index, []kvcache.ID{id}, []int{len(rest)}, nil)
		if err != nil {
			log.Fatal(err)
		}
		store(cache, slots) // a model computes rest
		lease.Release()
		if _, err := index.Insert(&prompt, id); err != nil {
			log.Fatal(err)
		}
		if err := cache.Free(id); err != nil {
			log.Fatal(err)
		}
		fmt.Println(lease.Tokens(), "tokens found,", len(rest), "computed")
	}
	s := cache.Stats()
	fmt.Println(s.Free, "pages free,", s.Used, "used,", s.Cached, "cached")
	fmt.Println(index.Evict(1), "evicted")

	// Output:
	// 0 tokens found, 13 computed
	// 8 tokens found, 4 computed
	// 12 pages free, 0 used, 4 cached
	// 1 evicted
}

// store puts rows in the slots of all layers, as a model would.
func store(cache *kvcache.Cache, slots []int32) {
	c, n := cache.Config(), int64(len(slots))
	for layer := range c.Layers {
		key := tensor.New(tensor.F32, n, int64(c.KVHeads), int64(c.HeadDim))
		value := tensor.New(tensor.F32, n, int64(c.KVHeads), int64(c.ValueDim))
		if err := cache.Append(layer, slots, key, value); err != nil {
			log.Fatal(err)
		}
	}
}
