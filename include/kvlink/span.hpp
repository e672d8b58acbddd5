/* A view of an array. Part of kvlink.hpp. */

#ifndef KVLINK_SPAN_HPP
#define KVLINK_SPAN_HPP

#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

namespace kvlink {

/* Points to elements of others, as std::span does, which C++17 lacks. Made from whatever has them in a row (vector, array,
 * std::span, a named initializer_list) or from one element; never from a temporary element. Owns nothing. */
template <class T>
class Span {
    template <class Container>
    using Elements = decltype(std::data(std::declval<Container&>()));

    /* A Container whose elements are read or written as T, without conversion. */
    template <class Container>
    using IfFits = std::enable_if_t<std::is_convertible_v<std::remove_pointer_t<Elements<Container>> (*)[], T (*)[]>>;

public:
    using value_type = std::remove_cv_t<T>;

    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    constexpr Span(T& one) noexcept : data_(&one), size_(1) {}
    Span(std::remove_const_t<T>&& temporary) = delete;

    template <class Container, class = IfFits<Container>>
    constexpr Span(Container& elements) noexcept : Span(std::data(elements), std::size(elements))
    {
    }
    /* Of a temporary: for the arguments of one call. */
    template <class Container, class = IfFits<const Container>>
    constexpr Span(const Container& elements) noexcept : Span(std::data(elements), std::size(elements))
    {
    }

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t index) const noexcept { return data_[index]; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace kvlink

#endif
