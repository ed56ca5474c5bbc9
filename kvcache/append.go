package kvcache

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Append stores the rows key [tokens, KVHeads, HeadDim] and value [tokens,
// KVHeads, ValueDim] in the slots [tokens] that Extend gave, of one layer,
// rounded to Config.DType, FP8 under Config.Scales. A slot of −1 drops its row. The keys must be rotated
// as Config.KeyStorage says. Each slot may come once.
//
// A slot outside the cache or in a page that is free or shared is a *SlotError;
// a shape that does not fit is a *ValueError. Nothing is stored then.
func (c *Cache) Append(layer int, slots []int32, key, value tensor.View) error {
	if err := c.checkLayer(layer); err != nil {
		return err
	}
	args := c.appends.Get().(*kernel.AppendArgs)
	plain := c.plain.Load()
	*args = kernel.AppendArgs{Key: key, Value: value, KeyCache: plain.keys[layer], ValueCache: plain.values[layer], Slots: slots}
	args.KeyScale, args.ValueScale = c.scales(layer)
	err := c.checkAppend(args)
	if err == nil {
		err = c.backend.AppendKV(args)
	}
	*args = kernel.AppendArgs{} // the caller's memory must not live on in the pool
	c.appends.Put(args)
	return err
}

func (c *Cache) checkAppend(a *kernel.AppendArgs) error {
	if err := c.checkRows("key", &a.Key, len(a.Slots), c.config.HeadDim); err != nil {
		return err
	}
	if err := c.checkRows("value", &a.Value, len(a.Slots), c.config.ValueDim); err != nil {
		return err
	}
	return c.checkSlots(a.Slots)
}

func (c *Cache) checkRows(name string, v *tensor.View, tokens, dim int) error {
	if err := v.Check(); err != nil {
		return fmt.Errorf("kvcache: Append: %s: %w", name, err)
	}
	heads := c.config.KVHeads
	if v.Rank != 3 || v.Shape[0] != int64(tokens) || v.Shape[1] != int64(heads) || v.Shape[2] != int64(dim) {
		return valueError("Append: "+name, v, "[%d,%d,%d] for as many slots, KVHeads and features", tokens, heads, dim)
	}
	return nil
}

func (c *Cache) checkSlots(slots []int32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := int32(c.config.PageSize)
	for i, slot := range slots {
		if slot == -1 {
			continue
		}
		if slot < 0 || slot/size >= int32(c.config.Pages) {
			return &SlotError{i, slot, fmt.Sprintf("want −1 or 0 to %d", int64(size)*int64(c.config.Pages)-1)}
		}
		switch refs, held := c.pool.refs[slot/size], c.pool.held[slot/size]; {
		case refs == 0:
			return &SlotError{i, slot, "its page is free; want a slot that Extend gave"}
		case refs > 1:
			return &SlotError{i, slot, fmt.Sprintf("its page is shared by %d sequences or holders; store the rows before a Fork", refs)}
		case held > 0:
			return &SlotError{i, slot, "its page is held by another than a sequence; want a slot that Extend gave"}
		}
	}
	return nil
}
