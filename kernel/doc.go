// Package kernel is the contract between the packages that decide what to
// compute (attention, rope, kvcache) and those that compute it (cpu, cuda):
// plain data, one interface, and the numeric rules below. It imports no other
// package of the library but tensor.
//
// For query token t of sequence s with query index i, head h and KV head
// g = h/(Heads/KVHeads), attention is
//
//	x[j]  = Scale · rot(Query[t,h], PosQ(i)) · rot(Key[j,g], PosK(j))   for key indices j that i sees
//	s[j]  = mods(x[j])
//	Out   = Σ_j exp(s[j] − LSE) · Value[j,g]
//	LSE   = ln Σ_j exp(s[j])
//
// where each pair (i, j) lies in the Region of at most one Term, which gives
// PosQ and PosK. Axis letters: s sequence, t token, i query index, j key
// index, h head, g KV head, d feature.
//
// # Three integers
//
// An index is a token's ordinal in its sequence; masks speak in indices. A
// position is what a rotation turns by. A slot is where a row lies in a paged
// cache, page·PageSize + offset. They are int32 in tables; offsets of elements
// are int64 everywhere.
//
// # Rules for every policy
//
//   - LSE is natural, float32, one per (token, head), sinks included.
//   - A row that sees no key, or only scores below −10³⁰: Out = 0; LSE = −Inf,
//     or the sink logit if there is one.
//   - Order: scale, log-n and term scale; soft cap; slopes; relative bias;
//     prefix bias; mask; softmax.
//   - Causal is bottom-right aligned: the last query sees the last key.
//   - A window counts the query's own key. Sinks are the first keys.
//   - A NaN or Inf in a visible Key or Value, or in a Query, reaches its own
//     rows as IEEE 754 says and no other. Behind the mask, in unused page
//     tails and in dropped slots, nothing is read into a result.
//   - Rows of a Batch do not affect one another.
//
// # The Exact policy
//
// The result of a row is a pure function of the row, of the keys and values it
// sees, in order, and of the Spec. It is fixed operation by operation; exact.go
// has the scalar functions FMA, Exp2 = E, Log2, Tanh.
//
//  1. Every operation is IEEE 754 binary32, round to nearest even, subnormals
//     kept: fused multiply-add, add, subtract, multiply, divide, max,
//     conversion. A product that feeds an add is rounded first unless an FMA
//     is written.
//  2. F16, BF16 and FP8 inputs widen exactly. With a scale an FP8 key or value
//     is f32(q)·scale of its head. One of a coded page is fma(c, scale, zero) of
//     its group, c being f32(code) or Levels[head, code]; with a Rank then
//     fma(Left[slot, k], Right[k, d], ·) over k ascending; and where there is an
//     outlier, that instead. All of it comes before anything else, rotation
//     included.
//  3. Rotation tables come from Rotation.Fill. A pair (x, y) turns to
//     x' = fma(x, cos, −(y·sin)), y' = fma(y, cos, x·sin); PreRoPE keys turn
//     in float32 after widening and are not rounded to KVDType.
//  4. Score: a = fma(k[d], q[d], a) for d = 0 … HeadDim−1 from +0, then
//     t = a·Batch.ScoreScale. Soft cap: t = T(t·inv)·capL. Slopes:
//     t = fma(Slopes[h]·Log2E, −|i−j|, t). Relative bias:
//     t = fma(bias, Log2E, t). Prefix bias: t = fma(C[i] − C[j], Log2E, t).
//  5. Keys are taken by index in tiles of 64 and chunks of 512. A chunk starts
//     with m = −10³⁰, l = +0, o = +0. For each tile that shows the row a key:
//     m' = max(m, t_j over visible j, NaN skipped); f = E(m − m'); l = l·f;
//     o = o·f; then for visible j ascending p = E(t_j − m'); l = l + p;
//     o[d] = fma(v_j[d], p, o[d]).
//  6. Chunks with a visible key merge left to right into a state that starts
//     as a chunk does: M = max(ma, mb); fa = E(ma − M); fb = E(mb − M);
//     l = fma(lb, fb, la·fa); o = fma(ob, fb, oa·fa).
//  7. A sink logit then merges as the state (SinkLogit·Log2E, 1, 0).
//  8. l = 0: Out = +0, LSE = −Inf. Otherwise Out = o·(1/l) + 0, rounded once to
//     DType; the + 0 makes −0 into +0, so that a key skipped and a key of
//     weight 0 agree. LSE = (m + L(l))·Ln2.
//  9. Merge of (Out, LSE) states: M = max(a, b); wa = E((a − M)·Log2E), wb
//     likewise; l = wa + wb; Out = fma(ob, wb, oa·wa)·(1/l) + 0;
//     LSE = M + L(l)·Ln2. A side with LSE −Inf leaves the other as it is.
//  10. Backward: D = fma(dO[d], O[d], ·) over d from +0, minus dLSE;
//     p = E(t − LSE·Log2E); dP = fma(dO[d], v[d], ·); ds = p·(dP − D), with
//     soft cap times fma(−T, T, 1); g = ds·(ScoreScale·Ln2). dQ' = fma(k', g, ·)
//     over visible keys ascending in each Term, turned back by
//     x = fma(x', cos, y'·sin), y = fma(y', cos, −(x'·sin)), Terms added in
//     order. dK' and dV take for each key the query heads of its group
//     ascending, and of each the queries ascending:
//     dK' = fma(q', g, ·), dV = fma(dO, p, ·). dK' too is kept by Term and the
//     Terms added in order, turned back first where keys are PreRoPE.
//  11. Of a NaN only that it is one is promised, not its payload.
//  12. FP8 is stored as RNE8(x·r), with r = 1/scale of the head rounded once, x
//     widened, the product rounded to float32; without a scale as RNE8(x). RNE8
//     rounds to nearest even and saturates: what is above the largest number,
//     an infinity included, becomes the largest of its sign. NaN stays NaN. A
//     scale is positive, and it and 1/scale are normal; of others only that
//     these operations are done is promised.
//  13. A page is coded head by head, keys and values alike, from values x as
//     rule 2 widens them. A group is one feature over all slots of the page, or with
//     Group so many neighbouring features of one row. With Outliers m the m entries
//     farthest from the mean of their group are taken out first, of those as far the
//     lower index slot·dim + feature first: their distance is |x − s/n|, s being the
//     chain of adds over the entries of the group, by index from +0, that are finite
//     as F16, and n their number; an entry that is not is infinitely far. An outlier
//     is F16(x), to nearest even, of a NaN 0x7e00. Of the rest of a group
//     lo = min x + 0, hi = max x + 0 (−0 becomes +0), scale = F16((hi − lo)/n),
//     n being the largest code, zero = F16(lo): subtraction and division in float32.
//     With RMS scale = F16(√(q/n)), q = fma(x, x, ·) over the rest by index from +0,
//     n their number, and zero = +0. Of a group without a rest both are +0. The page
//     is not coded where x is no number, or scale or zero no finite F16, in any
//     group, or where a finite outlier is no finite F16: a NaN or an infinity is
//     coded as an outlier or not at all. A group of equal values has scale +0.
//  14. A code is RNE(clamp((x − zero)/scale, 0, n)), with scale and zero widened
//     from F16; with Levels the number of codes c below n such that
//     y = (x − zero)/scale is above (Levels[c] + Levels[c+1])·½, or equal to it and c
//     odd: the nearest level, of two as near the even one. It is 0 where scale is 0,
//     and of an outlier. Where c is a code the product c·scale of rule 2 is exact:
//     whether the sum is fused does not matter. With a Rank the error
//     e[slot, d] = x − fma(c, scale, zero), of outliers +0, is approximated term by
//     term. v starts as the row of e of largest fma(e, e, ·) over d from +0, the
//     first of equals, divided by √ of that; then PowerIterations times
//     u[slot] = fma(e[slot, d], v[d], ·) over d from +0, v[d] = fma(e[slot, d],
//     u[slot], ·) over slots from +0, divided by √fma(v, v, ·). Right = F16(v),
//     Left[slot] = F16(fma(e[slot, d], Right[d], ·)), e = fma(−Left, Right, e).
//     Where a sum of squares is 0 or not finite, Left and Right of the term are +0.
//     Where a Left is no finite F16 the page is not coded.
//  15. ColumnStats: w = E(t − LSE·Log2E), with Power 2 then w·w. Of a key and
//     query head it is the chain of adds over the query tokens that see the
//     key and lie in the Window, ascending, from +0. A query of LSE −Inf adds
//     nothing. With Maximum it is the largest of them and +0 in place of the
//     sum, NaN if one is NaN.
//  16. PageBounds are min x + 0 and max x + 0 of values x as rule 2 widens them
//     (−0 becomes +0), NaN if one is. Storing them in the type of an F16 or
//     BF16 page is exact.
//  17. PageScores: with q⁺ = max(q, 0) and q⁻ = min(q, 0),
//     a = fma(Max[d], q⁺[d], a) over d from +0, then a = fma(Min[d], q⁻[d], a)
//     over d, then a·Scale.
//  18. TopK: of the first Count scores of a row those above −Inf that are no NaN
//     are chosen from, the largest first, of equal ones (−0 and +0 are) those of
//     lower index first.
//  19. GatherRows copies a row of one source of weight 1 bit for bit. Of others a
//     feature is a = fma(x, w, a) over the sources in order from +0, with x widened
//     without a scale, rounded once to the type of the rows, FP8 as RNE8(a).
//  20. RowScores: a = fma(k[c], q[c], a) over the channels c in their order, from
//     +0, then a·Scale.
//  21. CodeScores: a = a + Table[p·n + Codes[p] mod n] over parts p ascending,
//     from +0.
//  22. Scores: a = fma(k[d], q[d], a) over d from +0, then a·Scale.
//  23. ScoreLoss: s and t by rule 22, +0 where at or below a negative ZeroBelow;
//     e = s − t; Out = fma(e, e, ·) over keys ascending from +0. g = e·Gradient,
//     +0 where s was set to +0; DQuery = fma(k, g, ·) over keys ascending from +0;
//     DKey = fma(q, g, ·) over the query heads of its group ascending, and of each
//     the queries ascending, from +0.
//  24. Scan takes the tokens of a sequence in chunks of 64 from the first of the
//     call, and q = Query·Scale, rounded. a = min(max(Gate·Log2E, −128), 0) is
//     summed from the start of the chunk in binary64: G[0] = 0, G[r+1] = G[r] + a.
//     D(i, j) = E(G[j] − G[i]), the difference rounded to binary32, is what the
//     tokens i … j−1 leave; 1 without gates. z is 1 with Bonus and 0 without. The
//     weight of row x of token r for an earlier token s, W(x, r, s), up to j = r+1−z,
//     is c·D(s+1, j), c = fma(x[d], k[s,d], ·) over d from +0; with gates of
//     channels fma(x[d]·D(m, j), k[s,d]·D(s+1, m), ·), m being r with the bits below
//     the highest that differs in r and s cleared. Then
//     with Beta y[r] = v[r] − fma(k[r,d]·D(0, r+1), S[d], ·) over d from +0,
//     u[r] = Beta·fma(−W(k, r, s), u[s], y[r]) over s ascending from 0, else
//     u[r] = v[r]. Out = fma(q[d]·D(0, j), S[d], ·) over d from +0, then
//     fma(W(q, r, s), u[s], ·) over s ascending, then fma(w, u[r], ·) with
//     w = fma(q[d], k[r,d], ·), with Bonus fma(q[d]·Bonus[d], k[r,d], ·), then + 0.
//     After n tokens S[d] = fma(k[s,d]·D(s+1, n), u[s], ·) over s ascending from
//     S[d]·D(0, n). So a sequence may be cut where a chunk ends, and the bits are
//     those of one call; cut elsewhere they differ by rounding.
//
// The Fast policy of a backend may take any order; see Policy.
//
// # Names
//
//	here                        flash-attention      FlashInfer                vLLM
//	Query, Key, Value, Out      q, k, v, out         q, k, v, o                query, key, value, output
//	Heads, KVHeads              nheads, nheads_k     num_qo_heads, num_kv_heads num_heads, num_kv_heads
//	HeadDim, ValueDim           headdim, headdim_v   head_dim_qk, head_dim_vo  head_size
//	QueryStart [n+1]            cu_seqlens_q         qo_indptr                 query_start_loc
//	SeqLens [n]                 seqused_k            (kv_indptr, last_page_len) seq_lens
//	PageSize                    page_block_size      page_size                 block_size
//	BlockTable (CSR)            block_table (dense)  kv_indptr, kv_indices     block_table (dense)
//	AppendArgs.Slots, −1 drops  –                    –                         slot_mapping, PAD_SLOT_ID −1
//	Scale, SoftCap              softmax_scale, softcap sm_scale, logits_soft_cap scale, logits_soft_cap
//	window of W keys            window_size (W−1, 0) window_left W−1           sliding_window W
//	KeyScale, ValueScale        k_descale, v_descale k_scale, v_scale         k_scale, v_scale
//	Coding, Levels, Outliers    –                    –                         – (KIVI: quantized cache; KVQuant: nuq look-up table, dense-and-sparse; GEAR: sparse part)
//	Left, Right                 –                    –                         – (GEAR: low-rank part)
//	LSE (natural)               softmax_lse (natural) lse (base 2)             softmax_lse (natural)
//	SinkLogit                   learnable_sink       sink                      sinks
//	ColumnStats                 –                    –                         – (H2O: accumulated attention scores; SnapKV: votes of an observation window)
//	PageBounds, PageScores      –                    –                         – (Quest: page metadata, criticality estimate)
//	GatherRows                  –                    –                         – (eviction: gather and index_select of past keys and values)
//	RowScores                   –                    –                         – (SparQ, Loki, Double Sparsity: approximate scores)
//	CodeScores                  –                    –                         – (faiss: lookup tables of a product quantiser)
//	TopK                        –                    –                         – (torch.topk, with an order of ties)
//	Scores, ScoreLoss            –                    –                         – (TinyBERT: attention scores and their MSE)
//	Scan: Gate, Beta, Bonus     –                    –                         – (flash-linear-attention: g, beta, u)
//	row without keys: LSE −Inf  +Inf or −Inf by path −Inf                      –
package kernel
